// Numbers and times as the operator's page writes them.

import { SPACE, number } from "/locale.js";

export * from "/locale.js";

// Energy, given in kWh.
export function energy(kwh) {
  if (Math.abs(kwh) >= 1) return `${number(2, 2).format(kwh)}${SPACE}kWh`;
  return `${number(1).format(kwh * 1000)}${SPACE}Wh`;
}

// Powers of an axis in W, all in the unit that the largest one needs.
export function powers(watts) {
  const most = Math.max(...watts);
  const [size, unit] = most >= 1e6 ? [1e6, "MW"] : most >= 5000 ? [1000, "kW"] : [1, "W"];
  return watts.map((each) => `${number(2).format(each / size)}${SPACE}${unit}`);
}

export const seconds = (value) => (value === null ? "–" : `${number(2).format(value)}${SPACE}s`);

// The first digits of an id, by which people tell meters apart.
export const short = (id) => id.slice(0, 8);

// Figures of several channels, each named if there is more than one.
export function byChannel(values, write) {
  const named = Object.entries(values);
  if (named.length === 1) return write(named[0][1]);
  return named.map(([name, value]) => `${name} ${write(value)}`).join(", ");
}
