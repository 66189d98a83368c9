// The load curve: mean power of all meters together, and where there is no sum.

/* global uPlot */
import { byId, element, show } from "/dom.js";
import * as format from "/format.js";
import { getJson } from "/get.js";

const HEIGHT = 260;
const BANDS = [["lost", "--lost", "lost"], ["pending", "--pending", "pending"], ["without_roster", "--missing", "without roster"]];
const COLOURS = ["--first", "--second", "--green", "--amber"];
// How often the same span is asked for at most.
const EVERY_MS = 5000;

let net = null;
let span = null;
let back = 0; // Spans before the present one.
let asked = 0;
let askedAt = 0;
let plot = null;
let course = null;
let cells = [];
let drawnAs = "";
let chosen = null; // Start of the bar that the arrow keys chose, in seconds.

// From and until of the chosen span in ms, in days of the browser's time zone.
function bounds() {
  const now = new Date();
  const day = (days) => new Date(now.getFullYear(), now.getMonth(), now.getDate() + days).getTime();
  if (span === "hour") {
    const hour = 3_600_000;
    const end = Math.ceil(now.getTime() / 300_000) * 300_000 - back * hour;
    return [end - hour, end];
  }
  if (span === "day") return [day(-back), day(1 - back)];
  if (span === "week") return [day(-6 - 7 * back), day(1 - 7 * back)];
  const month = (months) => new Date(now.getFullYear(), now.getMonth() + months, 1).getTime();
  return [month(-back), month(1 - back)];
}

// Shows the load curve of a net, unless it was done a moment ago.
export async function showLoad(shown) {
  if (net !== shown.net) {
    net = shown.net;
    // Of short rounds a day would show next to nothing.
    if (span === null) span = shown.period_s < 60 ? "hour" : "day";
    back = 0;
    askedAt = 0;
  }
  if (Date.now() - askedAt >= EVERY_MS) await redraw();
}

async function redraw() {
  askedAt = Date.now();
  asked += 1;
  const own = asked;
  const [from, until] = bounds();
  const query = new URLSearchParams({ from: new Date(from).toISOString(), until: new Date(until).toISOString() });
  const answer = await getJson(`/api/nets/${net}/course?${query}`);
  // Another one was chosen in the meantime.
  if (own !== asked) return;
  course = { ...answer, range: [from / 1000, until / 1000] };
  for (const button of document.querySelectorAll("[data-span]")) {
    button.setAttribute("aria-pressed", button.dataset.span === span);
  }
  byId("after").setAttribute("aria-disabled", back === 0);
  const end = until - 1;
  show(byId("span-text"), span === "hour"
    ? `${format.date(from)}, ${format.interval(from, until)}`
    : format.date(from) === format.date(end) ? format.date(from) : `${format.date(from)} – ${format.date(end)}`);
  draw();
  describe();
}

// Each bin of the span, empty ones too, so that all bars are as wide as their time.
function grid() {
  const found = new Map(course.bins.map((bin) => [Date.parse(bin.start) / 1000, bin]));
  const starts = [];
  for (let at = Date.parse(course.from) / 1000; at < Date.parse(course.until) / 1000; at += course.bin_s) starts.push(at);
  return starts.map((start) => ({ start, bin: found.get(start) ?? null }));
}

function draw() {
  const target = byId("chart");
  const style = getComputedStyle(target);
  const colour = (name) => style.getPropertyValue(name).trim();
  cells = grid();
  const data = [cells.map(({ start }) => start), ...course.channels.map((name) => cells.map(({ bin }) => bin?.power_w[name] ?? null))];
  // The same chart with other figures keeps its cursor.
  const as = JSON.stringify([course.channels, colour("--soft")]);
  if (plot && drawnAs === as) {
    plot.setData(data);
    return;
  }
  drawnAs = as;
  const bars = uPlot.paths.bars({ align: 1, size: [1, Infinity], gap: 0 });
  const axis = { stroke: colour("--soft"), grid: { stroke: colour("--line"), width: 1 }, ticks: { stroke: colour("--line"), width: 1 }, font: `12px ${style.fontFamily}` };
  plot?.destroy();
  plot = new uPlot({
    width: Math.max(target.clientWidth, 200),
    height: HEIGHT,
    legend: { show: false },
    cursor: { y: false, drag: { x: false, y: false }, points: { show: false } },
    scales: { x: { time: true, range: () => course.range }, y: { range: (_, least, most) => [0, most > 0 ? most * 1.08 : 100] } },
    axes: [
      { ...axis, values: (_, ticks) => ticks.map((at) => tick(at * 1000)), space: 70 },
      { ...axis, size: 68, values: (_, ticks) => format.powers(ticks) },
    ],
    series: [{}, ...course.channels.map((name, place) => {
      const paint = colour(COLOURS[place % COLOURS.length]);
      return { label: name, stroke: paint, fill: place === 0 ? paint : `${paint}99`, width: 0, paths: bars, points: { show: false } };
    })],
    hooks: {
      drawClear: [(u) => bands(u, colour)],
      setCursor: [(u) => pick(u.cursor.idx === null || u.cursor.left < 0 ? null : cells[u.cursor.idx]?.bin)],
    },
  }, data, target);
}

function tick(ms) {
  if (span === "hour" || span === "day") return format.clock(ms);
  return new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short" }).format(ms);
}

// Marks what has no sum: lost solid, pending and without a roster hatched.
function bands(u, colour) {
  const { ctx, bbox } = u;
  ctx.save();
  for (const [key, name] of BANDS) {
    ctx.fillStyle = hatched(ctx, key, colour(name));
    for (const { start, bin } of cells) {
      if (!bin?.[key]) continue;
      const left = u.valToPos(start, "x", true);
      const width = Math.max(u.valToPos(start + course.bin_s, "x", true) - left, 3 * devicePixelRatio);
      ctx.globalAlpha = 0.35;
      ctx.fillRect(left, bbox.top, width, bbox.height);
      ctx.globalAlpha = 1;
      ctx.fillRect(left, bbox.top, width, 6 * devicePixelRatio);
    }
  }
  ctx.restore();
}

function hatched(ctx, key, colour) {
  if (key === "lost") return colour;
  const tile = document.createElement("canvas");
  tile.width = tile.height = 8;
  const pen = tile.getContext("2d");
  pen.strokeStyle = colour;
  pen.lineWidth = 3;
  pen.beginPath();
  if (key === "pending") for (const shift of [-8, 0, 8]) pen.moveTo(shift, 8), pen.lineTo(shift + 8, 0);
  else pen.moveTo(2, 0), pen.lineTo(2, 8);
  pen.stroke();
  return ctx.createPattern(tile, "repeat");
}

function words(bin) {
  const parts = [];
  if (Object.keys(bin.power_w).length > 0) parts.push(`${format.byChannel(bin.power_w, format.power)} (${format.byChannel(bin.energy_kwh, format.energy)})`);
  for (const [key, , name] of BANDS) {
    if (bin[key]) parts.push(`${format.numberOf(bin[key], "round", "rounds")} ${name}`);
  }
  return parts.join(", ");
}

function when(bin) {
  const [start, end] = [Date.parse(bin.start), Date.parse(bin.end)];
  return span === "hour" || span === "day" ? format.interval(start, end) : `${format.date(start)}, ${format.interval(start, end)}`;
}

function pick(bin) {
  const text = bin ? `${when(bin)}: ${words(bin)}` : "\u00a0";
  if (byId("picked").textContent !== text) byId("picked").textContent = text;
}

function describe() {
  const { bins, channels } = course;
  const total = (key) => bins.reduce((sum, bin) => sum + bin[key], 0);
  const parts = channels.map((name) => {
    const known = bins.filter((bin) => name in bin.power_w);
    if (known.length === 0) return `${name}: no sum in this span`;
    const energy = known.reduce((sum, bin) => sum + bin.energy_kwh[name], 0);
    const most = Math.max(...known.map((bin) => bin.power_w[name]));
    return `${name}: ${format.energy(energy)}, at most ${format.power(most)}`;
  });
  const without = BANDS.map(([key, , name]) => `${format.count(total(key))} ${name}`).join(", ");
  show(byId("chart-text"), `${parts.join("; ")}. Rounds: ${format.count(total("final"))} final, ${without}. Each bar is the mean of ${format.duration(course.bin_s)}.`);
  byId("legend").replaceChildren(
    ...channels.map((name, place) => element("li", "", element("span", `swatch channel-${place}`), `${name}, all meters of the sum together`)),
    element("li", "", element("span", "swatch lost"), "lost round"),
    element("li", "", element("span", "swatch pending"), "pending round"),
    element("li", "", element("span", "swatch without"), "no roster"),
  );
  const heading = ["Interval", ...channels.flatMap((name) => [`${name}, mean power`, `${name}, energy`]), "Final", "Pending", "Lost", "No roster"];
  byId("figures-head").replaceChildren(element("tr", "", ...heading.map((text) => {
    const cell = element("th", "", text);
    cell.scope = "col";
    return cell;
  })));
  byId("figures").replaceChildren(...bins.toReversed().map((bin) => {
    const interval = element("th", "", when(bin));
    interval.scope = "row";
    const values = channels.flatMap((name) => (name in bin.power_w ? [format.power(bin.power_w[name]), format.energy(bin.energy_kwh[name])] : ["–", "–"]));
    const counts = ["final", "pending", "lost", "without_roster"].map((key) => format.count(bin[key]));
    return element("tr", "", interval, ...[...values, ...counts].map((text) => element("td", "", text)));
  }));
}

// Lets buttons choose the span, and arrow keys a bar.
export function steerLoad(lost) {
  const again = () => redraw().catch(lost);
  for (const button of document.querySelectorAll("[data-span]")) {
    button.addEventListener("click", () => {
      span = button.dataset.span;
      back = 0;
      again();
    });
  }
  byId("before").addEventListener("click", () => {
    back += 1;
    again();
  });
  byId("after").addEventListener("click", () => {
    if (back === 0) return;
    back -= 1;
    again();
  });
  const chart = byId("chart");
  chart.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step || !course || course.bins.length === 0) return;
    event.preventDefault();
    const starts = course.bins.map((bin) => Date.parse(bin.start) / 1000);
    const now = starts.indexOf(chosen);
    const next = now < 0 ? starts.length - 1 : Math.min(Math.max(now + step, 0), starts.length - 1);
    chosen = starts[next];
    plot.setCursor({ left: plot.valToPos(chosen + course.bin_s / 2, "x"), top: 10 });
    pick(course.bins[next]);
  });
  chart.addEventListener("blur", () => {
    chosen = null;
    pick(null);
  });
  let width = 0;
  new ResizeObserver(() => {
    if (plot && chart.clientWidth !== width) plot.setSize({ width: Math.max(chart.clientWidth, 200), height: HEIGHT });
    width = chart.clientWidth;
  }).observe(chart);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => course && draw());
}
