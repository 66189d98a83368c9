// Numbers and times as the household's page writes them.

import { SPACE, number } from "/locale.js";

export * from "/locale.js";

const shortDay = new Intl.DateTimeFormat(undefined, { weekday: "short", day: "numeric" });
const shortest = new Intl.DateTimeFormat(undefined, { weekday: "short" });

// A figure in large type, which may break there.
export const breakable = (figure) => figure.replaceAll(SPACE, " ");

export const decimal = (value) => number(1).format(value);
export const weekday = (ms) => shortest.format(ms);
export const weekdayAndDay = (ms) => shortDay.format(ms);

// Energy of an interval or of a day; `mwh` is in thousandths of a watt-hour.
export function energy(mwh) {
  const wh = mwh / 1000;
  if (Math.abs(wh) >= 1000) return `${number(2, 2).format(wh / 1000)}${SPACE}kWh`;
  return `${number(Math.abs(wh) < 10 ? 3 : 0).format(wh)}${SPACE}Wh`;
}

// A total as a meter's display shows it.
export const register = (mwh) => `${number(3, 3).format(mwh / 1e6)}${SPACE}kWh`;

const CHANNELS = {
  import: ["Import", "drawn from the grid"],
  export: ["Export", "fed into the grid"],
};

// A channel's name for people, and what it measures where the name tells.
export const channel = (name) => CHANNELS[name] ?? [name, ""];
