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

function card(net) {
  const link = element("a", "", net.name);
  link.href = `#net/${net.net}`;
  const now = element("p", "now");
  if (net.newest) now.append(element("strong", "", format.byChannel(net.newest.power_w, format.power)));
  else now.append(element("strong", "", "No sum yet"));
  const figures = element("dl", "figures");
  figures.append(
    figure("Members", format.count(net.members)),
    figure("Absent", format.count(net.absent)),
    figure("Pending rounds", format.count(net.pending)),
    figure("Newest sum", net.newest ? `${format.moment(Date.parse(net.newest.end))}, ${format.numberOf(net.newest.included, "meter", "meters")}` : "none"),
  );
  return element("li", "card", element("h3", "", link), now, figures);
}

// An alarm as a list item; `net` names the net if it has to be said.
export function alarm(told, net) {
  const times = told.times > 1 ? `, ${format.count(told.times)} times, last` : "";
  const severity = { alarm: "Alarm", warning: "Warning", notice: "Please note" }[told.severity];
  return element("li", told.severity,
    element("p", "alarm", told.what),
    element("p", "soft", `${severity}${net ? `, ${net}` : ""}${times}, ${format.moment(Date.parse(told.at))}`),
    element("p", "", told.advice));
}
