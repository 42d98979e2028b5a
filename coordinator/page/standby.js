// Who is kept awake: what the slow level does, or would do, and what that saves.

import { byId, el, show } from "./dom.js";
import { isSimulated } from "./fleet.js";
import { count, digits, watts } from "./format.js";

const WH_J = 3600;
const MAX_NAMED = 20;

export function drawStandby({ fleet: { agents, provisioning }, power }) {
  const section = byId("standby");
  const decided = provisioning?.status ?? null;
  section.hidden = decided === null && !provisioning?.correction && !provisioning?.returning?.length;
  if (section.hidden) return show(section);
  const mark = power.simulated || agents.some(isSimulated) ? [el("span", { class: "chip simulated", title: "watts and joules of simulated hosts are in it" }, "simulated"), " "] : [];
  const said = lines(provisioning, namesOf(agents)).map((line, i) => el("p", {}, i ? null : mark, line));
  show(section, el("div", { class: "note" }, said));
}

const namesOf = (agents) => (key) => {
  const [id, model] = [key.slice(0, key.indexOf("/")), key.slice(key.indexOf("/") + 1)];
  return `${model} on ${agents.find((agent) => agent.agent_id === id)?.agent_name ?? id}`;
};

function listed(names, nAll = names.length) {
  const named = names.slice(0, MAX_NAMED);
  return `${named.join(", ") || "nobody"}${nAll > named.length ? ` and ${count(nAll - named.length)} more` : ""}`;
}

function lines(slow, named) {
  const acts = slow.mode === "act";
  const said = [acts ? "The coordinator wakes hosts and sends them to sleep." : "Mode observe: this is what it would do; it touches nothing."];
  if (slow.returning?.length) said.push(`Being brought back, as mode act is over: ${listed(slow.returning)}.`);
  if (slow.mode === "off") return ["The slow level is off: [provisioning] mode.", ...said.slice(1)];
  if (slow.correction) said.push(`The limits contradict each other. ${slow.correction}`);
  else if (slow.status !== null) {
    const awake = listed(slow.awake.map(named), slow.n_awake ?? slow.awake.length);
    const proof = slow.least_w === null ? "" : `; no set of that value draws less than ${watts(slow.least_w)}`;
    said.push(`Wanted in memory for ${digits(slow.requests_per_hour ?? 0)} requests an hour: ${awake}.${slow.standing_w === null ? "" : ` The fleet then waits at ${watts(slow.standing_w)}${proof}.`}`);
  }
  const left = (slow.n_stays ?? 0) - Object.keys(slow.stays).length;
  if (left > 0) said.push(`${count(slow.n_stays)} experts are left as they are; moe2-coordinator fleet show says why.`);
  else for (const [key, why] of Object.entries(slow.stays)) said.push(`${named(key)} is left as it is: ${why}.`);
  for (const change of slow.changes) said.push(`${acts ? "It does" : "It would"}: ${change.change} ${change.expert ? named(change.expert) : change.host}, because ${change.reason}.`);
  if (slow.would_sleep.length && slow.saved_j !== null && slow.waited_j !== null)
    said.push(`Today ${slow.would_sleep.map(named).join(", ")} waited ${digits(slow.waited_j / WH_J)} Wh; ${count(slow.returns)} returns from sleep would have replaced that and saved ${digits(slow.saved_j / WH_J)} Wh.`);
  for (const [what, hosts] of [["Pinned", slow.pinned], ["Sent to sleep", slow.kept_asleep]]) if (hosts.length) said.push(`${what} by an operator: ${listed(hosts)}.`);
  return said;
}
