// Asks the agent how things are, and does what the household wants.

import { byId, show } from "/dom.js";
import * as format from "/format.js";
import { Unreachable, at, getJson } from "/get.js";
import { showHistory, steerDays } from "/history.js";
import { showStatus } from "/status.js";

const POLL_MS = 2000;
const HISTORY_MS = 60_000;

let newest = null;
let answered = Date.now();
let historyAt = 0;
let timer = 0;
let asking = null;

async function ask() {
  try {
    newest = await getJson("/api/status", 8000);
  } catch (error) {
    return lost(error);
  }
  answered = Date.now();
  try {
    showStatus(newest);
    byId("content").hidden = false;
    byId("jumps").hidden = false;
    if (answered - historyAt > HISTORY_MS) await redraw();
    show(byId("no-connection"), null);
    document.body.classList.remove("stale");
  } catch (error) {
    lost(error);
  }
  byId("loading").hidden = true;
}

function lost(error) {
  document.body.classList.add("stale");
  byId("loading").hidden = true;
  if (error instanceof Unreachable) {
    const rest = byId("content").hidden ? "Is it running?" : "The figures below are from then.";
    show(byId("no-connection"), `No connection to the agent since ${format.clock(answered)}. ${rest} Trying again …`);
  } else {
    console.error(error);
    show(byId("no-connection"), "This page cannot show what the agent answers. Load it anew; if that does not help, tell who set the agent up.");
  }
}

async function redraw() {
  if (!newest) return;
  await showHistory(newest);
  historyAt = Date.now();
}

// One question at a time; the next one follows while the page is visible.
async function poll() {
  clearTimeout(timer);
  asking ??= ask().finally(() => (asking = null));
  await asking;
  clearTimeout(timer);
  if (!document.hidden) timer = setTimeout(poll, POLL_MS);
}

document.addEventListener("visibilitychange", () => {
  if (document.hidden) clearTimeout(timer);
  else poll();
});

steerDays(() => redraw().catch(lost));

// Returns what went wrong in words for the household, null if nothing did.
async function post(path, body) {
  try {
    const answer = await fetch(at(path), {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
      signal: AbortSignal.timeout(20_000),
    });
    if (answer.ok) return null;
    const { error } = await answer.json().catch(() => ({}));
    return error ?? `The agent refused this (error ${answer.status}).`;
  } catch {
    return "The agent cannot be reached, so it is not certain that this was done. Look again once there is a connection.";
  }
}

function tell(text) {
  show(byId("done"), text);
  clearTimeout(tell.timer);
  tell.timer = setTimeout(() => show(byId("done"), null), 10_000);
}

byId("pause").addEventListener("click", async () => {
  const pausing = !newest.paused;
  byId("pause").setAttribute("aria-disabled", "true");
  const error = await post(pausing ? "/api/pause" : "/api/resume", {});
  byId("pause").removeAttribute("aria-disabled");
  show(byId("action-error"), error);
  if (error === null) tell(pausing ? "Paused. Nothing of new intervals leaves the house." : "Resumed. This meter takes part again.");
  await poll();
});

byId("confirm-clock").addEventListener("click", async () => {
  const error = await post("/api/confirm-clock", {});
  show(byId("clock-error"), error);
  if (error === null) tell("Thank you. This meter takes its clock for right.");
  await poll();
});

// A dialog that asks before it posts. `body` gives what to post, null to post nothing.
function confirmed(opener, dialog, error, path, body, done) {
  const form = dialog.querySelector("form");
  const submit = form.querySelector("[type=submit]");
  opener.addEventListener("click", () => {
    form.reset();
    show(error, null);
    dialog.showModal();
  });
  form.querySelector(".cancel").addEventListener("click", () => dialog.close());
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (submit.getAttribute("aria-disabled") === "true") return;
    const content = body();
    if (content === null) return;
    submit.setAttribute("aria-disabled", "true");
    const failure = await post(path, content);
    submit.removeAttribute("aria-disabled");
    show(error, failure);
    if (failure !== null) return;
    dialog.close();
    await done();
  });
}

confirmed(byId("delete"), byId("delete-dialog"), byId("delete-error"), "/api/data/delete", () => ({}), async () => {
  tell("Your data is deleted.");
  await Promise.all([poll(), redraw().catch(lost)]);
});

const confirm = byId("confirm");
confirm.addEventListener("input", () => {
  confirm.removeAttribute("aria-invalid");
  show(byId("exit-error"), null);
});

confirmed(byId("exit"), byId("exit-dialog"), byId("exit-error"), "/api/exit", () => {
  const typed = confirm.value.trim().toLowerCase();
  if (typed === newest.meter.slice(0, 8)) return { confirm: typed };
  show(byId("exit-error"), `These are not the first 8 digits of the meter id. They are ${newest.meter.slice(0, 8)}.`);
  confirm.setAttribute("aria-invalid", "true");
  confirm.focus();
  return null;
}, async () => {
  tell("This meter is leaving the group.");
  await poll();
});

poll();
