// A net: its figures, its rounds as they pass, and what needs attention.

import { byId, element, figure, fill, show } from "/dom.js";
import * as format from "/format.js";
import { absentRow } from "/members.js";
import { alarm, standing } from "/overview.js";
import { outcome, roundRow, showPhases } from "/phases.js";

// Alarms that are shown at once.
const ALARMS = 3;

export function showNet(net) {
  show(byId("name"), net.name);
  show(byId("net-id"), net.net);
  show(byId("standing"), standing(net));
  showAlarms(net.alarms);
  showPassing(net);
  const { privacy } = net;
  const unknown = net.closed ? "not known" : "known after the next roster";
  const known = (value) => (value === null ? unknown : format.count(value));
  fill(byId("privacy"), [privacy, unknown], () => [
    figure("Meters in the newest sum", format.count(privacy.group)),
    figure("Fewest allowed (minimum group)", format.count(privacy.minimum_group)),
    figure("Live neighbours, fewest of a meter", known(privacy.live_neighbours_minimum)),
    figure("Live neighbours, median", known(privacy.live_neighbours_median)),
    figure("Fewest allowed (minimum neighbours)", format.count(privacy.minimum_neighbours)),
    figure("Edges used by one end only", format.count(privacy.half_open_edges)),
  ]);
  fill(byId("rules"), [net.members, net.left, net.log_index, net.pending, net.absent], () => [
    figure("Members", format.count(net.members)),
    figure("Absent", format.count(net.absent)),
    figure("Former members", format.count(net.left)),
    figure("Pending rounds", format.count(net.pending)),
    figure("Round", `every ${format.duration(net.period_s)}`),
    figure("Window for submissions", format.seconds(net.window_ms / 1000)),
    figure("Neighbours that a meter draws", format.count(net.degree)),
    figure("Entries of the log", format.count(net.log_index + 1)),
  ]);
  fill(byId("absent"), net.absent_members, (all) => all.map(absentRow));
  byId("absent-scroll").hidden = net.absent_members.length === 0;
  const present = net.closed ? "The net is closed: nobody is waited for." : "Every member is on the newest roster.";
  show(byId("nobody-absent"), net.absent_members.length > 0 ? null : present);
  fill(byId("unfinished"), net.unfinished, (all) => all.map(unfinishedRow));
  byId("unfinished-scroll").hidden = net.unfinished.length === 0;
  byId("nothing-unfinished").hidden = net.unfinished.length > 0;
  const refused = Object.entries(net.refused);
  fill(byId("refused"), refused, (all) => all.map(([reason, times]) => figure(reason, format.count(times))));
  byId("nothing-refused").hidden = refused.length > 0;
}

// What a watching page is sent of a net.
export function showPassing(net) {
  showPhases(net.rounds, net.members);
  fill(byId("rounds"), net.rounds, (all) => all.map(roundRow));
}

function showAlarms(alarms) {
  const worst = alarms.some((told) => told.severity === "alarm") ? "bad" : alarms.length > 0 ? "wait" : "";
  byId("alarms").closest("section").className = `card alarming ${worst}`;
  fill(byId("alarms"), alarms.slice(0, ALARMS), (all) => all.map((told) => alarm(told)));
  byId("no-alarms").hidden = alarms.length > 0;
  const older = alarms.slice(ALARMS);
  fill(byId("older-alarms"), older, (all) => all.map((told) => alarm(told)));
  byId("more-alarms").hidden = older.length === 0;
  show(byId("more-alarms-count"), `${format.count(older.length)} more`);
}

function unfinishedRow(round) {
  const interval = element("th", "", `${format.date(Date.parse(round.start))}, ${format.interval(Date.parse(round.start), Date.parse(round.end))}`);
  interval.scope = "row";
  const why = round.why ?? "waits for reveals";
  return element("tr", "", interval, element("td", "", outcome(round.status)), element("td", "", why));
}
