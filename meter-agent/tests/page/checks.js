// Returns what is wrong with the page for people who see little, have thick fingers or a small
// telephone: a list of texts.

const wrong = [];
const say = (text, element) => wrong.push(`${text}: ${element.outerHTML.slice(0, 120)}`);
const shown = [...document.body.querySelectorAll("*")].filter((element) => element.checkVisibility());

// Nothing is wider than the window.
if (document.documentElement.scrollWidth > innerWidth) wrong.push("the page scrolls sideways");
for (const element of shown) {
  const box = element.getBoundingClientRect();
  if (box.width > 1 && (box.right > innerWidth + 0.5 || box.left < -0.5)) say("beyond the window", element);
  const isCut = element.scrollWidth > element.clientWidth + 1 && getComputedStyle(element).overflowX !== "visible";
  if (element.clientWidth > 1 && isCut) say("cut off", element);
}

// What is pressed is large enough.
for (const element of shown.filter((each) => each.matches("button, .button, input, summary, nav a"))) {
  const box = element.getBoundingClientRect();
  if (box.height < 44 || box.width < 44) say(`only ${box.width} x ${box.height}`, element);
}

// Text stands out from its ground by the ratio that WCAG 2 AA asks for.
const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
const known = new Map();
function rgba(colour) {
  if (!known.has(colour)) known.set(colour, painted(colour));
  return known.get(colour);
}
function painted(colour) {
  canvas.clearRect(0, 0, 1, 1);
  canvas.fillStyle = colour;
  canvas.fillRect(0, 0, 1, 1);
  return [...canvas.getImageData(0, 0, 1, 1).data];
}
function luminance(colour) {
  const [red, green, blue] = rgba(colour).slice(0, 3).map((part) => {
    const share = part / 255;
    return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
}
function ground(element) {
  for (let each = element; each; each = each.parentElement) {
    const colour = getComputedStyle(each).backgroundColor;
    if (rgba(colour)[3] === 255) return colour;
  }
  return "white";
}
for (const element of shown) {
  const hasText = [...element.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.data.trim());
  if (!hasText) continue;
  const style = getComputedStyle(element);
  const [one, other] = [luminance(element.closest("svg") ? style.fill : style.color), luminance(ground(element))];
  const ratio = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
  if (ratio < 4.5) say(`contrast of only ${ratio.toFixed(2)}`, element);
}

// Headings go down by one level at a time, and there is one of the first.
let level = 0;
for (const element of shown.filter((each) => each.matches("h1, h2, h3, h4, h5, h6") && !each.closest("dialog"))) {
  const own = Number(element.tagName[1]);
  if (own > level + 1 || (own === 1 && level > 0)) say(`heading after one of level ${level}`, element);
  level = own;
}
if (document.querySelectorAll("h1").length !== 1) wrong.push("not one h1");
if (document.querySelectorAll("main").length !== 1) wrong.push("not one main");

// What is referred to is there, and once.
const ids = [...document.querySelectorAll("[id]")].map((element) => element.id);
for (const id of ids.filter((each, index) => ids.indexOf(each) !== index)) wrong.push(`two elements with id ${id}`);
for (const element of document.querySelectorAll("[aria-labelledby], [aria-describedby], label[for]")) {
  for (const name of ["aria-labelledby", "aria-describedby", "for"]) {
    const id = element.getAttribute(name);
    if (id && !document.getElementById(id)) say(`no element ${id}`, element);
  }
}
for (const element of document.querySelectorAll("img:not([alt])")) say("no alt", element);

return wrong;
