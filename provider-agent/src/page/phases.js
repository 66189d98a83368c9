// A round on its way from submissions to the aggregate.

import { byId, element, fill, show } from "/dom.js";
import * as format from "/format.js";

const OUTCOMES = {
  submissions: "takes submissions",
  reveals: "takes reveals",
  final: "final",
  pending: "pending",
  lost: "lost",
  "no-roster": "no roster",
};

export const outcome = (stage) => element("span", `outcome ${stage}`, OUTCOMES[stage]);

// State of each of the four phases, by the stage of the round.
const STATES = {
  submissions: ["now", "open", "open", "open"],
  reveals: ["done", "done", "now", "open"],
  final: ["done", "done", "done", "done"],
  pending: ["done", "done", "late", "open"],
  lost: ["done", "done", "failed", "failed"],
  "no-roster": ["done", "failed", "open", "open"],
};
const MARKS = { done: ["✓", "done"], now: ["…", "under way"], late: ["!", "late"], failed: ["✗", "failed"], open: ["", "not yet"] };

// Shows the newest of these rounds in a net of so many members.
export function showPhases(rounds, members) {
  const round = rounds[0] ?? null;
  fill(byId("phases"), [round, members], () => (round ? phases(round, members) : []));
  show(byId("round-title"), round ? `Round ${format.count(round.round)}` : "Round");
  show(byId("round-interval"), round
    ? `${format.date(Date.parse(round.start))}, ${format.interval(Date.parse(round.start), Date.parse(round.end))}`
    : "No round has been seen since the agent started.");
}

function phases(round, members) {
  const [submission, roster, reveal, aggregate] = STATES[round.stage];
  const some = (state, text) => (state === "open" ? "–" : text);
  return [
    phase("Submission", submission, `${format.count(round.submitted)} of ${format.count(members)}`, "members have submitted"),
    phase("Roster", roster, some(roster, format.count(round.included)), roster === "failed"
      ? "none could be made"
      : round.roster_after_s === null ? "included" : `included, after ${format.seconds(round.roster_after_s)}`),
    phase("Reveal", reveal, some(reveal, `${format.count(round.revealed)} of ${format.count(round.included)}`), owing(round)),
    phase("Aggregate", aggregate, round.stage === "final" ? format.byChannel(round.power_w, format.power) : some(aggregate, "no sum"),
      round.stage === "final" ? `verified after ${format.seconds(round.ended_after_s)}` : "verified sum"),
  ];
}

function owing({ missing }) {
  if (missing.length === 0) return "have revealed";
  const named = missing.slice(0, 4).map(format.short).join(", ");
  return `missing: ${named}${missing.length > 4 ? " …" : ""}`;
}

function phase(name, state, count, detail) {
  const [sign, words] = MARKS[state];
  const mark = element("span", "mark", sign);
  mark.setAttribute("aria-hidden", "true");
  const said = element("span", "hidden-visually", `, ${words}`);
  return element("li", state, mark, element("h4", "", name, said), element("p", "count", count), element("p", "detail", detail));
}

export function roundRow(round) {
  const interval = element("th", "", format.interval(Date.parse(round.start), Date.parse(round.end)));
  interval.scope = "row";
  const cells = [
    format.count(round.submitted),
    format.count(round.included),
    format.count(round.revealed),
    format.seconds(round.roster_after_s),
    format.seconds(round.ended_after_s),
    Object.keys(round.power_w).length > 0 ? format.byChannel(round.power_w, format.power) : "–",
  ];
  return element("tr", "", interval, element("td", "", outcome(round.stage)), ...cells.map((cell) => element("td", "", cell)));
}
