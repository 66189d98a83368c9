// The members of a net.

import { byId, element, show } from "/dom.js";
import * as format from "/format.js";
import { getJson } from "/get.js";

const STATES = {
  included: "on the newest roster",
  absent: "absent",
  joining: "joining: has not drawn neighbours yet",
  lapsed: "lapsed: away for long",
  "owes-reveal": "owes a reveal",
};

const PART = 100;

let net = null;
let wanted = PART;

// Of a member that is not on the newest roster.
export function absentRow(member) {
  const id = element("code", "", format.short(member.meter));
  id.title = member.meter;
  const meter = element("th", "", id);
  meter.scope = "row";
  return element("tr", "", meter,
    element("td", "", element("span", `outcome ${member.state}`, STATES[member.state])),
    element("td", "", member.last_included ? format.moment(Date.parse(member.last_included)) : "never"));
}

function memberRow(member) {
  const row = absentRow(member);
  row.append(element("td", "", format.count(member.neighbours)));
  return row;
}

// Shows the members of a net, if they are unfolded.
export async function showMembers(shown) {
  if (net !== shown.net) wanted = PART;
  net = shown.net;
  if (!byId("members-details").open) return;
  const rows = [];
  let total = 0;
  do {
    const part = await getJson(`/api/nets/${net}/members?offset=${rows.length}&limit=${Math.min(wanted - rows.length, 500)}`);
    if (net !== shown.net || part.members.length === 0) break;
    rows.push(...part.members);
    total = part.total;
  } while (rows.length < Math.min(wanted, total));
  byId("members").replaceChildren(...rows.map(memberRow));
  byId("more-members").hidden = rows.length >= total;
  show(byId("more-members"), `Show more of ${format.count(total)}`);
}

export function steerMembers(lost) {
  const again = () => showMembers({ net }).catch(lost);
  byId("members-details").addEventListener("toggle", () => net && again());
  byId("more-members").addEventListener("click", () => {
    wanted += PART;
    again();
  });
}
