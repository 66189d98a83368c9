// Shows what GET /api/status gives.

import { byId, element, figure, fill, show } from "/dom.js";
import * as format from "/format.js";

const DAY = 86_400_000;

export function showStatus(status) {
  const why = whySilent(status);
  showSummary(status, why);
  fill(byId("notes"), notes(status), (texts) => texts.map(([text, link]) => note(text, link)));
  byId("notes-section").hidden = !byId("notes").hasChildNodes();
  const channels = byId("channels");
  fill(channels, status.channels.map(({ name }) => name), () => status.channels.map(channelCard));
  status.channels.forEach((channel, index) => showChannel(channels.children[index], channel));
  showPicture(status, why);
  showGroup(status);
  showChecks(status.checks);
  showClock(status);
  showAlarms(status);
  showTakingPart(status);
  showAbout(status);
}

// The smallest group that policy and household ask for.
function minimumGroup({ policy, floors }) {
  return Math.max(floors.minimum_group, policy?.minimum_group ?? 0);
}

// Why nothing new leaves the house; null if the next superposition is due at its time.
function whySilent(status) {
  const { exit, policy, members, live, drawn, link } = status;
  if (exit?.done) return "This meter has left the group and erased its keys.";
  if (exit) return "This meter is leaving the group.";
  if (status.is_stopped) return stoppedBy(status);
  if (status.no_link) return `This meter counts, and has ${sentence(status.no_link.text)}`;
  if (status.paused) return "You have paused it.";
  if (!status.synchronised) return "The clock of this device is not set by the network yet. Without the right time this meter submits nothing.";
  if (status.clock_unconfirmed) return "The clock of this device has jumped ahead. Without your word that it is right this meter submits nothing.";
  if (!link.is_connected) return `This meter does not reach the net (${link.text.replace(/[.\s]*$/, "")}). It tries again by itself.`;
  if (!status.is_member) return "This meter is no member of the group yet. It asks to be let in by itself.";
  const least = minimumGroup(status);
  if (policy && members < least) {
    return `The group has ${format.numberOf(members, "member", "members")} now. This meter waits until it has ${format.count(least)}.`;
  }
  if (drawn === null) return "The neighbours of this meter are not drawn yet.";
  const required = requiredNeighbours(status);
  if (live !== null && required !== null && live < required) {
    return `Secrets are shared with ${format.count(live)} neighbours now. This meter needs ${format.count(required)}.`;
  }
  return null;
}

function stoppedBy({ alarms }) {
  const last = alarms.find(({ is_final }) => is_final);
  return last
    ? `An alarm has stopped this meter for good: ${sentence(last.text)} See “Alarms” for what to do.`
    : "An alarm has stopped this meter for good. Which one is not known here any more: look in the log of this device (journalctl -u meter-agent), or ask the gateway administrator.";
}

// The floor L of the newest round in which it is known.
function requiredNeighbours({ rounds }) {
  return rounds.find((round) => round.required !== null)?.required ?? null;
}

function showSummary(status, why) {
  const { exit } = status;
  const [kind, text] =
    exit?.done ? ["off", "Has left the group"]
    : exit ? ["off", "Leaving the group"]
    : status.is_stopped ? ["bad", "Stopped by an alarm"]
    : status.no_link ? ["bad", "Counts only: there is no link to the group"]
    : status.paused ? ["off", "Paused"]
    : why ? ["wait", "Waiting: nothing new leaves the house"]
    : ["good", `Taking part in a group of ${format.count(status.members)}`];
  byId("summary").className = `summary ${kind}`;
  byId("summary").hidden = false;
  show(byId("summary-text"), text);
}

function notes(status) {
  const texts = [];
  if (status.no_link && status.no_link.kind !== "left") {
    texts.push([`Nothing is submitted: ${sentence(status.no_link.text)} The meter reading, the history and the charts go on.`]);
  }
  if (status.is_renewal_due) {
    const ended = status.certificate_end_ms <= status.utc_ms;
    texts.push([`A certificate of this meter ${ended ? "ended" : "ends"} on ${format.dateAndYear(status.certificate_end_ms)}. ${ended ? "Without a new one" : "After that"} this meter cannot take part any more, and only counts. Ask the gateway administrator for a new one.`]);
  }
  const lately = status.alarms.filter((alarm) => status.utc_ms - alarm.utc_ms < DAY);
  if (lately.length > 0) {
    texts.push([`${format.numberOf(lately.length, "alarm", "alarms")} in the last 24 hours.`, true]);
  }
  if (status.save_error !== null) {
    texts.push([`The register cannot be saved: ${sentence(status.save_error)} If the device is switched off now, the newest pulses are lost.`]);
  }
  for (const { name, line, line_trouble } of status.channels) {
    if (line_trouble) {
      texts.push([`${format.channel(name)[0]} is not counted now: ${sentence(line_trouble)} It is tried again by itself.`]);
    } else if (line?.is_stuck) {
      texts.push([`The pulse line of ${format.channel(name)[0]} does not change any more. Check the cable and the sensor: pulses may be missed.`]);
    }
  }
  return texts;
}

function note(text, link) {
  const item = element("li", "", text);
  if (link) {
    const anchor = element("a", "", "See what to do");
    anchor.href = "#alarms-title";
    item.append(" ", anchor);
  }
  return item;
}

function channelCard({ name }) {
  const [title, meaning] = format.channel(name);
  return element("article", "card channel",
    element("h3", "", title, meaning && element("span", "meaning", ` ${meaning}`)),
    element("p", "now", element("span", "bound"), " ", element("strong", "watts")),
    element("dl", "figures", element("div", "", element("dt", "register-name"), element("dd", "register"))),
    element("p", "hint soft"),
    element("details", "", element("summary", "", "How it is measured"),
      element("p", "late"), element("p", "counted"), element("p", "line"), element("p", "input")));
}

// In place, so that focus and open details survive each poll.
function showChannel(card, { power, energy_mwh, reading_mwh, impulses_per_kwh, pulses, line, input }) {
  const part = (name, text) => show(card.querySelector(`.${name}`), text);
  part("bound", power?.is_upper_bound && "at most");
  part("watts", power === null ? (input && energy_mwh !== null ? "not known" : "not known yet") : format.breakable(format.power(power.milliwatts / 1000)));
  card.classList.toggle("unknown", power === null);
  const isSet = reading_mwh !== null;
  part("register-name", isSet || energy_mwh === null ? "Meter reading" : "Counted so far");
  part("register", energy_mwh === null ? "not known yet" : format.register(reading_mwh ?? energy_mwh));
  part("hint", isSet ? null
    : energy_mwh === null ? "The device has not shown its total yet."
    : "Does the meter itself show another number? Whoever looks after this device can say so once, with the command “meter-agent set-reading”. From then on it is shown here.");
  part("late", power?.is_upper_bound && "“At most”, because the next pulse has not come yet: the power may be lower, and the longer none comes, the lower it is.");
  part("counted", energy_mwh === null ? null
    : input ? `The device shows its total itself. It is followed in steps of ${format.energy(1e6 / impulses_per_kwh)}.`
    : `Counted: ${format.numberOf(pulses, "pulse", "pulses")} at ${format.count(impulses_per_kwh)} per kWh, that is ${format.register(energy_mwh)}.`);
  part("line", line && `Pulse line: ${line.is_active ? "active" : "idle"} now; ${format.count(line.rejected)} not counted because too short or too close, ${format.count(line.lost)} lost.`);
  const faults = Object.entries(input?.faults ?? {}).map(([kind, times]) => `${kind} (${format.count(times)})`);
  part("input", input && `Input: ${format.numberOf(input.readings, "reading", "readings")}; faults: ${faults.join(", ") || "none"}.`);
}

function showPicture(status, why) {
  const { rounds } = status;
  const newest = rounds[0];
  const left = rounds.find(hasLeft);
  show(byId("why"), stays(newest, why));
  show(byId("next"), why ? (left ? null : "Since this agent was started nothing has left the house.") : next(status, newest, left));
  byId("picture").hidden = !left;
  if (left) {
    fill(byId("picture-interval"), [left.from_ms, left.until_ms, left === newest], ([from, until, isNewest]) => [
      isNewest ? "The newest interval: " : "What left the house last: the interval ",
      element("strong", "", format.interval(from, until)),
      ` on ${format.date(from)}.`,
    ]);
    fill(byId("values"), left.values, (values) => values.flatMap(bothSides));
    show(byId("hides"), hides(left));
    fill(byId("steps"), [left, status.policy?.channels ?? null], steps);
  }
  byId("rounds-details").hidden = rounds.length === 0;
  fill(byId("rounds"), rounds, (all) => all.map(roundRow));
}

// Whether the superposition of a round was sent. One that was not has values all the same: the
// readings, which stay.
const hasLeft = ({ values }) => values.length > 0 && values.every(({ superposition }) => superposition !== null);

// What stays in the house although its time has come, and why.
function stays(newest, why) {
  const interval = newest && !hasLeft(newest) && format.interval(newest.from_ms, newest.until_ms);
  if (why) return `Nothing new leaves the house at present. ${why}${interval ? ` The newest interval, ${interval}, stayed here.` : ""}`;
  if (!interval || newest.submission.state !== "failed") return null;
  return `Nothing of the newest interval, ${interval}, left the house: ${sentence(newest.submission.reason ?? "a check failed")}`;
}

// What is to leave the house next, if nothing keeps it.
function next(status, newest, left) {
  if (newest && !hasLeft(newest) && newest.submission.state === "open") {
    return `The newest interval, ${format.interval(newest.from_ms, newest.until_ms)}, has not left the house yet. It does so at a random moment soon.`;
  }
  return left ? null : firstRound(status);
}

// When the first superposition is due.
function firstRound({ policy, utc_ms, uptime_s }) {
  const text = "Nothing has left the house yet.";
  if (!policy) return text;
  // The interval in which the agent started is never submitted.
  const period = policy.period_s * 1000;
  const end = (Math.ceil((utc_ms - uptime_s * 1000) / period) + 1) * period;
  return end > utc_ms ? `${text} The first whole interval ends at ${format.time(end)}.` : `${text} The first superposition follows soon.`;
}

function bothSides({ channel, reading_mwh, superposition }) {
  const groups = superposition.match(/.{1,8}/g) ?? [];
  const digits = element("code", "digits");
  for (const group of groups) digits.append(element("span", "", group), " ");
  const reading = reading_mwh === null ? "not kept any more" : format.breakable(format.energy(reading_mwh));
  const sides = element("div", "sides",
    element("div", "side stays", element("h4", "", "Stays here"),
      element("p", "reading", reading), element("p", "what", "the reading: energy of the interval")),
    element("div", "side leaves", element("h4", "", "Leaves the house"),
      element("p", "", digits), element("p", "what", "the superposition: a number of 64 digits")));
  return [element("h3", "", format.channel(channel)[0]), sides];
}

function hides({ used }) {
  const secrets = used === null
    ? "secrets shared with the neighbours"
    : `secrets shared with ${format.numberOf(used, "neighbour", "neighbours")}`;
  return `The number on the right is the reading on the left plus ${secrets} and one secret that this meter keeps to itself. Without those secrets it cannot be told from a random number.`;
}

const MARKS = { passed: ["✓", "done"], failed: ["✗", "refused"], open: ["…", "not yet"] };

function step(state, ...text) {
  const [mark, word] = MARKS[state];
  return element("li", state, element("span", "mark", mark), element("span", "", ...text, " ", element("span", "state", `(${word})`)));
}

function steps([round, channels]) {
  const { submission, reveal, included, sums_mwh } = round;
  const meters = included === null ? "" : ` It has ${format.numberOf(included, "meter", "meters")}.`;
  const list = [
    step(submission.state, `The superposition is sent.${reason(submission)}`),
    step(included === null ? "open" : "passed", `The provider lists the meters that have sent one: the roster.${meters}`),
    reveal.state === "failed"
      ? step("failed", `This meter refuses to answer.${reason(reveal)} So nobody learns a sum that has this reading in it.`)
      : step(reveal.state, "This meter checks the roster and answers with a second number, the reveal. It takes the secrets out of the sum, and out of nothing else."),
  ];
  if (reveal.state === "failed") return list;
  const households = included === null ? "all households of the roster" : format.numberOf(included, "household", "households");
  list.push(step(sums_mwh === null ? "open" : "passed", `The provider adds up and publishes the sum over ${households}${sums(sums_mwh, channels)}.`));
  return list;
}

function sums(sums_mwh, channels) {
  if (sums_mwh === null) return "";
  const texts = sums_mwh.map((sum, index) =>
    sums_mwh.length > 1 && channels?.[index] ? `${format.channel(channels[index])[0]} ${format.energy(sum)}` : format.energy(sum));
  return `: ${texts.join(", ")}`;
}

const sentence = (text) => text.replace(/[.\s]*$/, ".");
const reason = (check) => (check.reason ? ` Reason: ${sentence(check.reason)}` : "");

function roundRow({ from_ms, until_ms, values, submission, reveal, included, sums_mwh }) {
  const readings = values.map(({ reading_mwh }) => (reading_mwh === null ? "–" : format.energy(reading_mwh)));
  const outcome =
    submission.state === "failed" ? `Nothing left the house.${reason(submission)}`
    : submission.state === "open" ? "It has not left the house yet."
    : reveal.state === "failed" ? `Sent, but no reveal.${reason(reveal)}`
    : sums_mwh !== null ? `Sum over ${format.count(included ?? 0)}${sums(sums_mwh, null)}.`
    : reveal.state === "passed" ? "Answered; the sum is not published yet."
    : "Sent; waiting for the roster.";
  const header = element("th", "", format.interval(from_ms, until_ms));
  header.scope = "row";
  return element("tr", "", header, element("td", "", readings.join(", ") || "–"), element("td", "", outcome));
}

function showGroup(status) {
  const { members, drawn, live, is_member, policy, floors } = status;
  const data = [is_member, members, drawn, live, minimumGroup(status), requiredNeighbours(status), policy, floors];
  fill(byId("group"), data, () => {
    const figures = [figure("Households in the group", format.count(members))];
    figures.push(figure("Live neighbours", drawn === null ? "not drawn yet" : `${live === null ? "–" : format.count(live)} of ${format.count(drawn)}`));
    const required = requiredNeighbours(status);
    if (required !== null) figures.push(figure("Neighbours needed", format.count(required)));
    figures.push(figure("Smallest group for a sum", format.count(minimumGroup(status))));
    if (policy) figures.push(figure("A round every", format.duration(policy.period_s)));
    return figures;
  });
  show(byId("group-text"), (is_member ? "" : "This meter is not one of them. ")
    + "Neighbours are other meters, drawn by lot, that share secrets with this one. Live are those whose secrets hid the last superposition. "
    + `This meter takes no part in sums over fewer than ${format.count(floors.minimum_group)} households, nor if fewer than ${format.count(floors.minimum_presence_percent)} % of those seen lately are there, nor in rounds shorter than ${format.duration(floors.minimum_period_s)}, whatever the provider says. It stops for good if it is left out of sums, although its numbers came in time, more than ${format.count(floors.max_exclusions_per_day)} times a day or in ${format.count(floors.max_exclusions_per_month_percent)} % of a month’s rounds.`);
}

const WHEN = [["submission", "Before the superposition was sent"], ["reveal", "Before the reveal was sent"]];
const RESULTS = { passed: "passed", failed: "failed", open: "not yet" };

function showChecks(checks) {
  byId("no-checks").hidden = checks.length > 0;
  fill(byId("checks"), checks, () => WHEN.flatMap(([before, title]) => {
    const own = checks.filter((check) => check.before === before);
    if (own.length === 0) return [];
    // The first check that fails is the last one that is made.
    const results = checks.some(({ state }) => state === "failed") ? { ...RESULTS, open: "not made any more" } : RESULTS;
    const items = own.map(({ rule, state }) => element("li", state,
      element("span", "mark", MARKS[state][0]), element("span", "", rule, " ", element("span", "state", `(${results[state]})`))));
    const passed = own.filter((check) => check.state === "passed").length;
    return [element("h3", "", title),
      element("p", "count", `${format.count(passed)} of ${format.count(own.length)} passed`),
      element("ul", "steps", ...items)];
  }));
}

// A stopped meter and one that leaves submit nothing whatever the clock says.
function showClock({ clock_unconfirmed, utc_ms, is_stopped, exit }) {
  byId("clock-section").hidden = !clock_unconfirmed || is_stopped || exit !== null;
  show(byId("clock-now"), format.moment(utc_ms));
  byId("clock-now").dateTime = new Date(utc_ms).toISOString();
}

function showAlarms({ alarms, is_stopped }) {
  const isLost = is_stopped && !alarms.some(({ is_final }) => is_final);
  show(byId("no-alarms"), isLost ? "The alarm that stopped this meter is not kept here any more; the log of this device has it."
    : alarms.length === 0 ? "No alarms."
    : null);
  fill(byId("alarms"), alarms, () => alarms.map(({ utc_ms, text, advice }) => {
    const time = element("time", "", format.moment(utc_ms));
    time.dateTime = new Date(utc_ms).toISOString();
    const item = element("li", "", time, element("p", "alarm", text));
    if (advice) item.append(element("p", "advice", advice));
    return item;
  }));
}

function showTakingPart({ exit, is_member, is_stopped, no_link, paused, meter }) {
  const [text, canPause, canLeave] =
    exit?.done ? ["This meter has left the group and erased its keys. It goes on counting for you: the meter reading, the charts and the history stay on this device.", false, false]
    : exit?.left ? [`This meter has left. It waits until former neighbours have erased the keys that they shared with it: ${format.count(exit.awaited)} of ${format.count(exit.neighbours)} have not confirmed yet.`, false, false]
    : exit ? ["This meter is leaving. It waits until the provider has written the exit down; it submits nothing any more.", false, false]
    : is_stopped ? ["An alarm has stopped this meter for good, so it cannot leave by itself. Ask the gateway administrator to revoke it. It goes on counting.", false, false]
    : no_link ? [`There is no link to the group now, and without one this meter cannot leave it. ${paused ? "It is paused: nothing will leave the house even once there is one, until you resume." : "While paused, nothing will leave the house even once there is one."}`, true, false]
    : paused ? ["Paused: the meter counts on, and nothing of new intervals leaves the house until you resume. A round that was submitted before is still finished, because the others wait for the answer.", true, is_member]
    : is_member ? ["While paused, the meter counts on and nothing of new intervals leaves the house. A round that was submitted before is still finished, because the others wait for the answer.", true, true]
    : ["This meter is no member of the group, so there is nothing to leave. While paused, nothing will leave the house even once it is.", true, false];
  show(byId("taking-part"), text);
  show(byId("pause"), paused ? "Resume" : "Pause");
  byId("pause").hidden = !canPause;
  byId("exit").hidden = !canLeave;
  show(byId("digits"), meter?.slice(0, 8));
}

function showAbout(status) {
  show(byId("meter"), status.meter ?? "not known");
  show(byId("net"), status.net ?? "not known");
  show(byId("unsaved"), format.numberOf(status.unsaved_pulses, "pulse", "pulses"));
  show(byId("clock"), status.synchronised ? "synchronised" : "not synchronised");
  show(byId("link"), status.link.text);
  const end = status.certificate_end_ms;
  show(byId("certificate"), end === null ? "not known"
    : `${end <= status.utc_ms ? "ended on" : "valid until"} ${format.dateAndYear(end)}`);
  show(byId("version"), `version ${status.version}, running for ${format.duration(status.uptime_s)}`);
  const { history_days, shown_days } = status;
  show(byId("history-days"), history_days > 0
    ? `The agent keeps the meter reading and ${format.numberOf(history_days, "day", "days")} of history on this device. It is yours.`
    : `The agent keeps the meter reading on this device. No history is stored: up to ${format.numberOf(shown_days, "day", "days")} of it are held in memory, until the agent is stopped. It is yours.`);
}
