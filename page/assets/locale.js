// Numbers and times in the locale and time zone of the browser, as every page writes them.

export const number = (digits, least = 0) =>
  new Intl.NumberFormat(undefined, { maximumFractionDigits: digits, minimumFractionDigits: least });
const whole = number(0);
const dayAndMonth = new Intl.DateTimeFormat(undefined, { weekday: "long", day: "numeric", month: "long" });
const dayOfYear = new Intl.DateTimeFormat(undefined, { weekday: "long", day: "numeric", month: "long", year: "numeric" });
const hourAndMinute = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit" });
const withSeconds = new Intl.DateTimeFormat(undefined, { timeStyle: "medium" });
const dateAndTime = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });

// Between a figure and its unit, so that no line breaks there.
export const SPACE = "\u00a0";

export const count = (value) => whole.format(value);
export const date = (ms) => dayAndMonth.format(ms);
export const dateAndYear = (ms) => dayOfYear.format(ms);
export const moment = (ms) => dateAndTime.format(ms);

// Of a moment, where seconds are of no interest.
export const clock = (ms) => hourAndMinute.format(ms);

export const time = (ms) => (ms % 60_000 === 0 ? hourAndMinute : withSeconds).format(ms);

// Seconds stand at both ends or at none.
export function interval(from, until) {
  const form = from % 60_000 === 0 && until % 60_000 === 0 ? hourAndMinute : withSeconds;
  return `${form.format(from)}–${form.format(until)}`;
}

// Power, given in W.
export function power(watts) {
  if (watts >= 1e6) return `${number(2, 2).format(watts / 1e6)}${SPACE}MW`;
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
