// Who is kept awake: what the slow level does, or would do, and what that saves.

import { byId, el, show } from "./dom.js";
import { count, digits, watts } from "./format.js";

const WH_J = 3600;

export function drawStandby({ agents, provisioning }) {
  const section = byId("standby");
  const decided = provisioning?.standing_w ?? null;
  section.hidden = decided === null && !provisioning?.correction;
  show(section, section.hidden ? null : el("div", { class: "note" }, lines(provisioning, namesOf(agents)).map((line) => el("p", {}, line))));
}

const namesOf = (agents) => (key) => {
  const [id, model] = [key.slice(0, key.indexOf("/")), key.slice(key.indexOf("/") + 1)];
  return `${model} on ${agents.find((agent) => agent.agent_id === id)?.agent_name ?? id}`;
};

function lines(slow, named) {
  const acts = slow.mode === "act";
  const said = [acts ? "The coordinator wakes hosts and sends them to sleep." : "Mode observe: this is what it would do; it touches nothing."];
  if (slow.correction) said.push(`The limits contradict each other. ${slow.correction}`);
  if (slow.standing_w !== null) {
    const awake = slow.awake.map(named).join(", ") || "nobody";
    const proof = slow.least_w === null ? "" : `; no set of that value draws less than ${watts(slow.least_w)}`;
    said.push(`Wanted in memory for ${digits(slow.requests_per_hour ?? 0)} requests an hour: ${awake}. The fleet then waits at ${watts(slow.standing_w)}${proof}.`);
  }
  for (const change of slow.changes) said.push(`${acts ? "It does" : "It would"}: ${change.change} ${change.expert ? named(change.expert) : change.host}, because ${change.reason}.`);
  if (slow.would_sleep.length && slow.saved_j !== null && slow.waited_j !== null)
    said.push(`Today ${slow.would_sleep.map(named).join(", ")} waited ${digits(slow.waited_j / WH_J)} Wh; ${count(slow.returns)} returns from sleep would have replaced that and saved ${digits(slow.saved_j / WH_J)} Wh.`);
  return said;
}
