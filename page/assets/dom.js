// Building and changing the document; text only ever gets in as text.

export const byId = (id) => document.getElementById(id);

// An element with a class and children, which are elements or text.
export function element(name, className, ...children) {
  const made = document.createElement(name);
  if (className) made.className = className;
  made.append(...children);
  return made;
}

const SVG = "http://www.w3.org/2000/svg";

export function svgElement(name, attributes, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

// Shows a text, or hides the element if there is none. What stays the same is left alone, so
// that selections survive and nothing is read out again.
export function show(target, text) {
  const shown = text || "";
  if (target.textContent !== shown) target.textContent = shown;
  if (target.hidden !== !shown) target.hidden = !shown;
}

const filled = new WeakMap();

// Replaces the children of an element if what they are made of has changed.
export function fill(target, data, make) {
  const madeOf = JSON.stringify(data);
  if (filled.get(target) === madeOf) return;
  filled.set(target, madeOf);
  target.replaceChildren(...[make(data)].flat());
}

// A name and its figure in a description list.
export const figure = (name, ...value) =>
  element("div", "", element("dt", "", name), element("dd", "", ...value));
