// Chooses between the nets and one net, and keeps what is shown up to date.

import { byId, show } from "/dom.js";
import * as format from "/format.js";
import { Missing, Unreachable, getJson } from "/get.js";
import { showNet, showPassing } from "/net.js";
import { showLoad, steerLoad } from "/load.js";
import { showGraph } from "/graph.js";
import { showMembers, steerMembers } from "/members.js";
import { showOverview } from "/overview.js";

// At most so often everything is asked for anew while rounds pass, and at least so often.
const EAGER_MS = 1000;
const LAZY_MS = 30_000;
const RETRY_MS = 3000;

let source = null;
let answered = Date.now();
let timer = 0;
let asking = null;
let again = false;

const chosen = () => location.hash.match(/^#net\/([0-9a-f]{32})$/)?.[1] ?? null;

function lost(error) {
  if (error instanceof Missing) {
    location.hash = "";
    return;
  }
  document.body.classList.add("stale");
  byId("loading").hidden = true;
  if (!(error instanceof Unreachable)) console.error(error);
  show(byId("no-connection"), error instanceof Unreachable
    ? `No connection to the agent since ${format.clock(answered)}; what is shown is from then. Trying again …`
    : "This page cannot show what the agent answers. Load it anew; if that does not help, look at the agent's log.");
}

function found() {
  answered = Date.now();
  document.body.classList.remove("stale");
  show(byId("no-connection"), null);
  byId("loading").hidden = true;
}

function showLink({ is_connected, text }) {
  byId("link").className = `summary ${is_connected ? "good" : "bad"}`;
  byId("link").hidden = false;
  show(byId("link-text"), text[0].toUpperCase() + text.slice(1));
}

async function ask() {
  const id = chosen();
  try {
    if (id) {
      const net = await getJson(`/api/nets/${id}`);
      if (chosen() !== id) return;
      showNet(net);
      byId("overview").hidden = true;
      byId("net").hidden = false;
      document.title = `${net.name} – DC-net provider`;
      await Promise.all([showLoad(net), showGraph(net), showMembers(net)]);
    } else {
      const overview = await getJson("/api/overview");
      if (chosen() !== null) return;
      showOverview(overview);
      showLink(overview.link);
      byId("net").hidden = true;
      byId("overview").hidden = false;
      document.title = "DC-net provider";
    }
    found();
  } catch (error) {
    lost(error);
  }
}

// One question at a time; what happens meanwhile is asked for after it.
function refresh() {
  clearTimeout(timer);
  if (asking) {
    again = true;
    return;
  }
  asking = ask().finally(() => {
    asking = null;
    clearTimeout(timer);
    timer = setTimeout(refresh, again ? EAGER_MS : LAZY_MS);
    again = false;
  });
}

let eager = 0;
function soon() {
  if (eager) return;
  eager = setTimeout(() => {
    eager = 0;
    refresh();
  }, EAGER_MS);
}

function watch() {
  source?.close();
  source = new EventSource("/api/events");
  source.addEventListener("now", (event) => {
    const now = JSON.parse(event.data);
    showLink(now.link);
    const net = now.nets.find((each) => each.net === chosen());
    if (net) showPassing(net);
    soon();
  });
  source.addEventListener("error", () => {
    soon();
    // The browser gives up after an answer that is none.
    if (source.readyState === EventSource.CLOSED) setTimeout(() => document.hidden || watch(), RETRY_MS);
  });
}

document.addEventListener("visibilitychange", () => {
  if (document.hidden) {
    source?.close();
    clearTimeout(timer);
  } else {
    watch();
    refresh();
  }
});

addEventListener("hashchange", () => {
  byId("net").hidden = true;
  byId("overview").hidden = true;
  byId("loading").hidden = false;
  scrollTo(0, 0);
  refresh();
  again = true;
});

steerLoad(lost);
steerMembers(lost);
watch();
refresh();
