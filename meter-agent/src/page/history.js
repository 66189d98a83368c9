// The history of the register as average power per quarter of an hour and per hour.

import { chart } from "/chart.js";
import { byId, element, fill, show } from "/dom.js";
import * as format from "/format.js";
import { getJson } from "/get.js";

const MINUTE = 60_000;
const QUARTER = 15 * MINUTE;
const HOUR = 60 * MINUTE;
const DAY = 24 * HOUR;
const MONTH = 30 * DAY;
// Further apart than this, nobody counted in between.
const LONGEST = 20 * MINUTE;
// Some devices say only every hour or two what they have counted meanwhile.
const LONGEST_OF_DEVICE = 135 * MINUTE;

let chosen = 0; // Days before today.
let asked = 0;

// The first moment of a local day, `days` after today; days have 23 to 25 hours.
function midnight(now, days) {
  const day = new Date(now);
  return new Date(day.getFullYear(), day.getMonth(), day.getDate() + days).getTime();
}

// Shows the chosen day and the week. `status` is the newest one: its registers end the history.
export async function showHistory(status) {
  const now = status.utc_ms;
  chosen = Math.min(chosen, status.shown_days);
  const day = [midnight(now, -chosen), midnight(now, 1 - chosen)];
  const week = [midnight(now, -6), midnight(now, 1)];
  asked += 1;
  const own = asked;
  const ofWeek = ask(status, week[0], now + LONGEST);
  // The agent gives no more than some months at once.
  const ofDay = day[0] < week[0] ? ask(status, day[0], Math.min(day[1] + MONTH, now + LONGEST)) : ofWeek;
  const [dayData, weekData] = await Promise.all([ofDay, ofWeek]);
  // Another day was chosen in the meantime.
  if (own !== asked) return;

  const date = chosen < 100 ? format.date(day[0]) : format.dateAndYear(day[0]);
  show(byId("day-date"), chosen === 0 ? `Today, ${date}` : chosen === 1 ? `Yesterday, ${date}` : date);
  byId("day-before").setAttribute("aria-disabled", chosen >= status.shown_days);
  byId("day-after").setAttribute("aria-disabled", chosen === 0);
  drawAll(byId("day-charts"), dayData, now, { from: day[0], until: day[1], width: QUARTER, isWeek: false });
  drawAll(byId("week-charts"), weekData, now, { from: week[0], until: week[1], width: HOUR, isWeek: true });
}

// What was counted in a span of time, and from when its totals are too far apart.
async function ask(status, from, until) {
  // The total before the first one that is shown may be as old as that.
  const { channels, samples } = await getJson(`/api/history?from=${from - DAY}&until=${until}`, 20_000);
  const known = channels.map((name) => status.channels.find((channel) => channel.name === name) ?? null);
  // Without the right time it is not known where it belongs.
  if (status.synchronised && until >= status.utc_ms) {
    samples.push({ at_ms: status.utc_ms, energy_mwh: known.map((channel) => channel?.energy_mwh ?? null), is_break: known.map(() => false) });
  }
  return { channels, samples, longest: known.map((channel) => (channel?.input ? LONGEST_OF_DEVICE : LONGEST)) };
}

// Lets the buttons choose a day; `redraw` is called after it.
export function steerDays(redraw) {
  const move = (days) => (event) => {
    if (event.currentTarget.getAttribute("aria-disabled") === "true") return;
    chosen += days;
    redraw();
  };
  byId("day-before").addEventListener("click", move(1));
  byId("day-after").addEventListener("click", move(-1));
}

// The course of a channel in `range`:
//   bins: energy in mWh and the part of the bin that was counted; `from` and `until` are null
//     where nobody counted
//   jumps: stretches of time of which only the energy altogether is known
// Totals that are further apart than `longest` are not joined.
export function course(samples, channel, range, longest) {
  const made = [];
  for (let start = range.from; start < range.until; start += range.width) {
    made.push({ start, end: Math.min(start + range.width, range.until), mwh: 0, counted: 0, from: null, until: null });
  }
  const jumps = [];
  let before = null;
  for (const { at_ms, energy_mwh, is_break } of samples) {
    const total = energy_mwh[channel];
    if (total === null) continue;
    const after = { at: at_ms, total };
    if (before !== null) {
      const length = after.at - before.at;
      if (!is_break[channel] && length <= longest) {
        addPiece(made, range, before, after);
      } else if (total > before.total && length >= MINUTE && before.at < range.until && after.at > range.from) {
        jumps.push({ from: before.at, until: after.at, mwh: total - before.total });
      }
    }
    before = after;
  }
  return { bins: made, jumps };
}

function addPiece(made, range, before, after) {
  const length = after.at - before.at;
  const energy = after.total - before.total;
  if (length <= 0 || energy < 0) return;
  const first = Math.max(0, Math.floor((before.at - range.from) / range.width));
  for (let index = first; index < made.length && made[index].start < after.at; index += 1) {
    const bin = made[index];
    const from = Math.max(before.at, bin.start);
    const until = Math.min(after.at, bin.end);
    if (until <= from) continue;
    bin.mwh += (energy * (until - from)) / length;
    bin.counted += until - from;
    bin.from ??= from;
    bin.until = until;
  }
}

export const watts = (bin) => (bin.mwh / 1000 / bin.counted) * HOUR;

// Parts of the range before `now` in which nobody counted, at least a minute long.
export function gaps(made, now) {
  const found = [];
  let since = made[0].start;
  for (const bin of made) {
    if (bin.from === null) continue;
    if (bin.from - since >= MINUTE) found.push([since, bin.from]);
    since = bin.until;
  }
  const end = Math.min(now, made.at(-1).end);
  if (end - since >= MINUTE) found.push([since, end]);
  return found;
}

function drawAll(target, { channels, samples, longest }, now, range) {
  fill(target, [channels, range.isWeek], () => channels.map((name, index) => frame(name, index)));
  channels.forEach((name, index) => draw(target.children[index], name, course(samples, index, range, longest[index]), now, range));
}

let frames = 0;

function frame(name, index) {
  frames += 1;
  const summary = element("p", "chart-text");
  summary.id = `chart-text-${frames}`;
  const picture = element("div", `chart ${index % 2 === 0 ? "first" : "second"}`);
  const body = element("tbody");
  const caption = element("caption", "hidden-visually");
  const head = element("tr", "", ...["Time", "Energy", "Average power"].map((text) => {
    const cell = element("th", "", text);
    cell.scope = "col";
    return cell;
  }));
  const table = element("details", "", element("summary", "", "Figures as a table"),
    element("table", "", caption, element("thead", "", head), body));
  return element("div", "channel-chart", element("h3", "", format.channel(name).filter(Boolean).join(": ")), picture,
    element("p", "picked"), summary, table);
}

function draw(target, name, { bins: made, jumps }, now, range) {
  const counted = made.filter((bin) => bin.counted > 0);
  const missing = gaps(made, now);
  const summary = target.querySelector(".chart-text");
  show(summary, summarise(counted, missing, jumps, name, range));
  chart(target.querySelector(".chart"), {
    bins: made.map((bin) => ({ ...bin, watts: bin.counted > 0 ? watts(bin) : null })),
    gaps: missing, range, now,
    label: `Chart of ${format.channel(name)[0]}`,
    describedBy: summary.id,
    pick: (bin) => show(target.querySelector(".picked"), bin && pickedText(bin, range)),
  });
  const table = target.querySelector("details");
  const rows = () => fill(table.querySelector("tbody"), [made, now], () => made.filter((bin) => bin.start < now).map((bin) => row(bin, range)));
  show(table.querySelector("caption"), `${format.channel(name)[0]}, energy and average power`);
  table.ontoggle = () => table.open && rows();
  if (table.open) rows();
}

const when = (from, until, { isWeek }) => `${isWeek ? `${format.weekdayAndDay(from)}, ` : ""}${format.clock(from)}–${format.clock(until)}`;

function pickedText(bin, range) {
  const figure = bin.watts === null ? "nobody counted" : `${format.power(bin.watts)} on average`;
  return `${when(bin.start, bin.end, range)}: ${figure}`;
}

function row(bin, range) {
  const header = element("th", "", when(bin.start, bin.end, range));
  header.scope = "row";
  if (bin.counted === 0) {
    const none = element("td", "", "nobody counted");
    none.colSpan = 2;
    return element("tr", "gap", header, none);
  }
  return element("tr", "", header, element("td", "", format.energy(Math.round(bin.mwh))), element("td", "", format.power(watts(bin))));
}

function summarise(counted, missing, jumps, name, range) {
  const unseen = jumps.map(jumpText).join("");
  if (counted.length === 0) return `Nothing was counted in this time.${unseen}`;
  const sum = counted.reduce((total, bin) => total + bin.mwh, 0);
  const most = counted.reduce((best, bin) => (watts(bin) > watts(best) ? bin : best));
  const meaning = format.channel(name)[1];
  let text = `${format.energy(Math.round(sum))}${meaning ? ` ${meaning}` : ""}.`;
  if (sum > 0) text += ` Most in ${when(most.start, most.end, range)}: ${format.power(watts(most))} on average.`;
  const shown = missing.slice(0, 3).map(([from, until]) => gapText(from, until, range));
  if (missing.length > 0) text += ` Nobody counted in ${shown.join("; ")}${missing.length > 3 ? `, and in ${format.count(missing.length - 3)} more gaps` : ""}.`;
  return text + unseen;
}

const dayAndClock = (ms) => `${format.weekdayAndDay(ms)}, ${format.clock(ms)}`;

function jumpText({ from, until, mwh }) {
  return ` Between ${dayAndClock(from)} and ${dayAndClock(until)} the meter moved on by ${format.energy(mwh)}; when in that time is not known.`;
}

function gapText(from, until, range) {
  if (!range.isWeek) return when(from, until, range);
  return `${dayAndClock(from)} to ${dayAndClock(until)}`;
}
