// Numbers and times in the locale and time zone of the browser.

const number = (digits, least = 0) =>
  new Intl.NumberFormat(undefined, { maximumFractionDigits: digits, minimumFractionDigits: least });
const whole = number(0);
const dayAndMonth = new Intl.DateTimeFormat(undefined, { weekday: "long", day: "numeric", month: "long" });
const hourAndMinute = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit" });
const withSeconds = new Intl.DateTimeFormat(undefined, { timeStyle: "medium" });
const dateAndTime = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });

// Between a figure and its unit, so that no line breaks there.
const SPACE = "\u00a0";

export const count = (value) => whole.format(value);
export const date = (ms) => dayAndMonth.format(ms);
export const moment = (ms) => dateAndTime.format(ms);

// Of a moment, where seconds are of no interest.
export const clock = (ms) => hourAndMinute.format(ms);

// Seconds stand at both ends or at none.
export function interval(from, until) {
  const form = from % 60_000 === 0 && until % 60_000 === 0 ? hourAndMinute : withSeconds;
  return `${form.format(from)}–${form.format(until)}`;
}

// Energy, given in kWh.
export function energy(kwh) {
  if (Math.abs(kwh) >= 1) return `${number(2, 2).format(kwh)}${SPACE}kWh`;
  return `${number(1).format(kwh * 1000)}${SPACE}Wh`;
}

// Power, given in W.
export function power(watts) {
  if (watts >= 1e6) return `${number(2, 2).format(watts / 1e6)}${SPACE}MW`;
  if (watts >= 10_000) return `${number(1, 1).format(watts / 1000)}${SPACE}kW`;
  return `${number(watts > 0 && watts < 10 ? 1 : 0).format(watts)}${SPACE}W`;
}

// Powers of an axis in W, all in the unit that the largest one needs.
export function powers(watts) {
  const most = Math.max(...watts);
  const [size, unit] = most >= 1e6 ? [1e6, "MW"] : most >= 5000 ? [1000, "kW"] : [1, "W"];
  return watts.map((each) => `${number(2).format(each / size)}${SPACE}${unit}`);
}

export const seconds = (value) => (value === null ? "–" : `${number(2).format(value)}${SPACE}s`);

export function duration(seconds) {
  if (seconds < 120) return `${count(seconds)} seconds`;
  if (seconds < 7200) return `${count(Math.floor(seconds / 60))} minutes`;
  if (seconds < 172_800) return `${count(Math.floor(seconds / 3600))} hours`;
  return `${count(Math.floor(seconds / 86_400))} days`;
}

export const numberOf = (value, one, many) => `${count(value)} ${value === 1 ? one : many}`;

// The first digits of an id, by which people tell meters apart.
export const short = (id) => id.slice(0, 8);

// Figures of several channels, each named if there is more than one.
export function byChannel(values, write) {
  const named = Object.entries(values);
  if (named.length === 1) return write(named[0][1]);
  return named.map(([name, value]) => `${name} ${write(value)}`).join(", ");
}
