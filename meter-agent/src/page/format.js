// Numbers and times in the locale and time zone of the browser.

const number = (digits, least = 0) =>
  new Intl.NumberFormat(undefined, { maximumFractionDigits: digits, minimumFractionDigits: least });
const whole = number(0);
const dayAndMonth = new Intl.DateTimeFormat(undefined, { weekday: "long", day: "numeric", month: "long" });
const shortDay = new Intl.DateTimeFormat(undefined, { weekday: "short", day: "numeric" });
const shortest = new Intl.DateTimeFormat(undefined, { weekday: "short" });
const hourAndMinute = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit" });
const withSeconds = new Intl.DateTimeFormat(undefined, { timeStyle: "medium" });
const dateAndTime = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });

// Between a figure and its unit, so that no line breaks there.
const SPACE = "\u00a0";

// A figure in large type, which may break there.
export const breakable = (figure) => figure.replaceAll(SPACE, " ");

export const count = (value) => whole.format(value);
export const decimal = (value) => number(1).format(value);
export const date = (ms) => dayAndMonth.format(ms);
export const weekday = (ms) => shortest.format(ms);
export const weekdayAndDay = (ms) => shortDay.format(ms);
export const moment = (ms) => dateAndTime.format(ms);

export function time(ms) {
  return (ms % 60_000 === 0 ? hourAndMinute : withSeconds).format(ms);
}

// Of a moment that is no boundary, where seconds are of no interest.
export const clock = (ms) => hourAndMinute.format(ms);

export const interval = (from, until) => `${time(from)}–${time(until)}`;

// Energy of an interval or of a day; `mwh` is in thousandths of a watt-hour.
export function energy(mwh) {
  const wh = mwh / 1000;
  if (Math.abs(wh) >= 1000) return `${number(2, 2).format(wh / 1000)}${SPACE}kWh`;
  return `${number(Math.abs(wh) < 10 ? 3 : 0).format(wh)}${SPACE}Wh`;
}

// A total as a meter's display shows it.
export const register = (mwh) => `${number(3, 3).format(mwh / 1e6)}${SPACE}kWh`;

export function power(watts) {
  if (watts >= 10_000) return `${number(1, 1).format(watts / 1000)}${SPACE}kW`;
  return `${number(watts > 0 && watts < 10 ? 1 : 0).format(watts)}${SPACE}W`;
}

export function duration(seconds) {
  if (seconds < 120) return `${count(seconds)} seconds`;
  if (seconds < 7200) return `${count(Math.floor(seconds / 60))} minutes`;
  if (seconds < 172_800) return `${count(Math.floor(seconds / 3600))} hours`;
  return `${count(Math.floor(seconds / 86_400))} days`;
}

export const numberOf = (value, one, many) => `${count(value)} ${value === 1 ? one : many}`;

const CHANNELS = {
  import: ["Import", "drawn from the grid"],
  export: ["Export", "fed into the grid"],
};

// A channel's name for people, and what it measures where the name tells.
export const channel = (name) => CHANNELS[name] ?? [name, ""];
