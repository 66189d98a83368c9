// The key graph on a circle: who shares secrets with whom.

import { byId, show } from "/dom.js";
import * as format from "/format.js";
import { getJson } from "/get.js";

let shown = null;

export async function showGraph(net) {
  const graph = await getJson(`/api/nets/${net.net}/graph`);
  shown = graph;
  paint();
  const { nodes, edges, members, is_sample } = graph;
  const degrees = nodes.map((node) => node.neighbours);
  const words = nodes.length === 0
    ? "There are no members yet."
    : is_sample
      ? `A sample of ${format.count(nodes.length)} of ${format.count(members)} members and the ${format.numberOf(edges.length, "edge", "edges")} between them.`
      : `${format.numberOf(nodes.length, "member", "members")}, ${format.numberOf(edges.length, "edge", "edges")}.`;
  const [least, most] = [Math.min(...degrees), Math.max(...degrees)].map(format.count);
  const range = nodes.length === 0 ? "" : ` Each of them has ${least === most ? most : `${least} to ${most}`} neighbours.`;
  show(byId("graph-text"), words + range);
}

function paint() {
  if (!shown) return;
  const canvas = byId("graph");
  const side = Math.max(canvas.clientWidth, 160);
  const scale = devicePixelRatio || 1;
  canvas.width = side * scale;
  canvas.height = side * scale;
  const pen = canvas.getContext("2d");
  pen.scale(scale, scale);
  const colour = (name) => getComputedStyle(canvas).getPropertyValue(name);
  const { nodes, edges } = shown;
  const radius = Math.max(2.5, Math.min(8, side / (nodes.length + 1)));
  const middle = side / 2;
  const reach = middle - radius - 3;
  const at = (place) => {
    const angle = (place / nodes.length) * 2 * Math.PI - Math.PI / 2;
    return [middle + reach * Math.cos(angle), middle + reach * Math.sin(angle)];
  };
  pen.clearRect(0, 0, side, side);
  pen.strokeStyle = colour("--field");
  // Many lines are drawn thinner, so that where there are more of them it is darker.
  pen.globalAlpha = Math.max(0.06, Math.min(0.6, 60 / Math.max(edges.length, 1)));
  pen.beginPath();
  for (const [one, other] of edges) {
    pen.moveTo(...at(one));
    pen.lineTo(...at(other));
    if (edges.length > 500) {
      pen.stroke();
      pen.beginPath();
    }
  }
  pen.stroke();
  pen.globalAlpha = 1;
  const colours = { included: "--green", absent: "--amber", "owes-reveal": "--red" };
  pen.lineWidth = 2;
  nodes.forEach(({ state }, place) => {
    const [x, y] = at(place);
    pen.strokeStyle = colour(colours[state] ?? "--field");
    pen.fillStyle = state === "included" || state === "owes-reveal" ? pen.strokeStyle : colour("--card");
    pen.beginPath();
    if (state === "owes-reveal") pen.rect(x - radius, y - radius, 2 * radius, 2 * radius);
    else pen.arc(x, y, radius, 0, 2 * Math.PI);
    pen.fill();
    pen.stroke();
  });
}

new ResizeObserver(paint).observe(byId("graph"));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paint);
