// A chart of average power as SVG.

import { svgElement } from "/dom.js";
import * as format from "/format.js";

const HEIGHT = 180;
const LEFT = 50;
const RIGHT = 6;
const TOP = 10;
const BOTTOM = 24;
const FLOOR = HEIGHT - BOTTOM;

// A round number of watts not below `most`, in steps that the axis can show.
function ceiling(most) {
  const size = 10 ** Math.floor(Math.log10(Math.max(most, 40)));
  return [1, 2, 4, 6, 8, 10].map((factor) => factor * size).find((top) => top >= most);
}

const drawings = new WeakMap();
const resized = new ResizeObserver((entries) => entries.forEach(({ target }) => paint(target)));

// Draws `data` into an element, and again whenever its width changes.
//   bins: start, end and the counted part from–until, all in ms; watts, null in a gap
//   gaps: pairs of ms between which nobody counted
//   range: from and until in ms; isWeek; bins that start after `now` are not there yet
//   pick: called with the bin under the pointer, null if there is none
export function chart(target, data) {
  if (!drawings.has(target)) {
    const pick = (event) => {
      const { bins, range, now, pick: told } = drawings.get(target);
      const box = target.getBoundingClientRect();
      const share = (event.clientX - box.left - LEFT) / (box.width - LEFT - RIGHT);
      const at = range.from + share * (range.until - range.from);
      told(bins.find((bin) => bin.start <= at && at < bin.end && bin.start < now) ?? null);
    };
    target.addEventListener("pointermove", pick);
    target.addEventListener("pointerdown", pick);
    target.addEventListener("pointerleave", () => drawings.get(target).pick(null));
    drawings.set(target, data);
    resized.observe(target);
  }
  drawings.set(target, data);
  paint(target);
}

function paint(target) {
  const { bins, gaps, range, label, describedBy } = drawings.get(target);
  const width = Math.max(target.clientWidth, 200);
  const scale = (width - LEFT - RIGHT) / (range.until - range.from);
  const x = (ms) => LEFT + (ms - range.from) * scale;
  const top = ceiling(Math.max(0, ...bins.map((bin) => bin.watts ?? 0)));
  const y = (watts) => FLOOR - (watts / top) * (FLOOR - TOP);
  const drawing = svgElement("svg", {
    role: "img", "aria-label": label, "aria-describedby": describedBy, viewBox: `0 0 ${width} ${HEIGHT}`, width, height: HEIGHT,
  });
  const text = (at, up, anchor, words) => svgElement("text", { x: at, y: up, "text-anchor": anchor }, words);

  for (const share of [0, 0.5, 1]) {
    const up = y(top * share);
    drawing.append(svgElement("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: up, y2: up }),
      text(LEFT - 4, up + 4, "end", axis(top * share, top)));
  }
  for (const { at, words, anchor } of ticks(range, width)) {
    drawing.append(svgElement("line", { class: "grid", x1: x(at), x2: x(at), y1: FLOOR, y2: FLOOR + 4 }),
      text(x(at), HEIGHT - 6, anchor, words));
  }
  for (const [from, until] of gaps) {
    drawing.append(svgElement("rect", { class: "gap", x: x(from), y: TOP, width: (until - from) * scale, height: FLOOR - TOP }));
  }
  for (const { from, until, watts } of bins) {
    if (watts === null) continue;
    // A hair's breadth between bars, and a visible foot for a power of nearly nothing.
    const wide = Math.max((until - from) * scale - 0.5, 0.5);
    const high = Math.max(FLOOR - y(watts), watts > 0 ? 1 : 0);
    drawing.append(svgElement("rect", { class: "bar", x: x(from), y: FLOOR - high, width: wide, height: high }));
  }
  target.replaceChildren(drawing);
}

const axis = (watts, top) => (top >= 1000 ? `${format.decimal(watts / 1000)}\u00a0kW` : `${format.count(watts)}\u00a0W`);

// Marks of the time axis: every few hours of a day, or the days of a week.
function ticks({ from, until, isWeek }, width) {
  const made = [];
  const start = new Date(from);
  const local = (days, hours) => new Date(start.getFullYear(), start.getMonth(), start.getDate() + days, hours).getTime();
  if (isWeek) {
    for (let day = 0; local(day, 0) < until; day += 1) {
      made.push({ at: (local(day, 0) + local(day + 1, 0)) / 2, words: (width < 560 ? format.weekday : format.weekdayAndDay)(local(day, 0)), anchor: "middle" });
    }
    return made;
  }
  const hours = width < 500 ? 6 : 3;
  for (let hour = 0; hour <= 24; hour += hours) {
    made.push({ at: local(0, hour), words: format.clock(local(0, hour)), anchor: hour === 0 ? "start" : hour === 24 ? "end" : "middle" });
  }
  return made;
}
