// The nets at a glance, and what needs attention.

import { byId, element, figure, fill, show } from "/dom.js";
import * as format from "/format.js";

export function showOverview({ version, nets, alarms }) {
  show(byId("version"), `provider-agent ${version}.`);
  byId("no-nets").hidden = nets.length > 0;
  fill(byId("nets"), nets, (all) => all.map(card));
  const names = new Map(nets.map((net) => [net.net, net.name]));
  fill(byId("all-alarms"), alarms, (all) => all.map((told) => alarm(told, names.get(told.net))));
  byId("no-all-alarms").hidden = alarms.length > 0;
}

// Where a net stands apart from its rounds, in words; null if there is nothing to say.
export function standing({ closed, resume }) {
  if (closed) return `Closed since ${format.moment(Date.parse(closed))}. It has no rounds any more; meters can still leave.`;
  if (resume) return `Restored from a backup, waiting for the sum of a round that started after ${format.moment(Date.parse(resume))}.`;
  return null;
}

function card(net) {
  const link = element("a", "", net.name);
  link.href = `#net/${net.net}`;
  const now = element("p", "now");
  if (net.closed) now.append(element("strong", "", "Closed"));
  else if (net.newest) now.append(element("strong", "", format.byChannel(net.newest.power_w, format.power)));
  else now.append(element("strong", "", "No sum yet"));
  const figures = element("dl", "figures");
  figures.append(
    figure("Members", format.count(net.members)),
    figure("Absent", format.count(net.absent)),
    figure("Pending rounds", format.count(net.pending)),
    figure("Newest sum", net.newest ? `${format.moment(Date.parse(net.newest.end))}, ${format.numberOf(net.newest.included, "meter", "meters")}` : "none"),
  );
  const said = standing(net);
  return element("li", "card", element("h3", "", link), now, ...(said ? [element("p", "", said)] : []), figures);
}

// An alarm as a list item; `net` names the net if it has to be said.
export function alarm(told, net) {
  const times = told.times > 1 ? `, ${format.count(told.times)} times, last` : "";
  const severity = { alarm: "Alarm", warning: "Warning", notice: "Please note" }[told.severity];
  return element("li", told.severity,
    element("p", "alarm", withTimes(told.what)),
    element("p", "soft", `${severity}${net ? `, ${net}` : ""}${times}, ${format.moment(Date.parse(told.at))}`),
    element("p", "", ...withCommands(told.advice)));
}

// Moments in a text in the browser's time zone, as everywhere else on the page.
const withTimes = (text) => text.replace(/\d{4}-\d\d-\d\dT[\d:.]+Z/g, (moment) => format.moment(Date.parse(moment)));

// Text in which what stands between backticks is a command.
const withCommands = (text) => text.split("`").map((part, place) => (place % 2 ? element("code", "", part) : part));
