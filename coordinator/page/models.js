// Which files a host has, fetches and serves, what is free there; buttons for keys that may operate.

import { request } from "./client.js";
import { byId, el } from "./dom.js";
import { bytes, count } from "./format.js";

const ORDERS = "/v1/moe2/orders";
const PUSHES = "/v1/moe2/pushes";
const PULLS = "/v1/moe2/pulls";
const KEPT_S = 600;
let mayOperate = false;

// Whether the key in use has the scope `operate`; without it there are no buttons.
export function offerOrders(may) {
  mayOperate = may;
}

export function modelsOf(agent, fleet) {
  const store = agent.models;
  if (!store) return null;
  const free = [
    store.free_bytes ? `${bytes(store.free_bytes)} of disk` : null,
    store.memory_free_bytes ? `${bytes(store.memory_free_bytes)} of memory` : null,
  ].filter(Boolean);
  const operates = mayOperate && agent.connected && store.takes_orders;
  return el(
    "div",
    { class: "models" },
    free.length ? el("p", { class: "note free" }, `Free: ${free.join(", ")}`) : null,
    (store.files ?? []).map((file) => fileRow(agent, file, operates)),
    (store.swapping ?? []).length ? el("p", { class: "note" }, `Being exchanged: ${store.swapping.join(", ")}`) : null,
    (store.fetching ?? []).map((one) => fetchRow(one, (fleet.pushes ?? []).find((push) => push.agent_id === agent.agent_id && push.sha256 === one.sha256))),
    (store.pulling ?? []).map(pullRow),
    troubles(agent, fleet),
    operates ? el("p", { class: "note" }, button("push", agent, "", "Send a model…"), pullButton(agent)) : null,
  );
}

function fileRow(agent, file, operates) {
  const users = file.served_as ?? [];
  return el(
    "p",
    { class: "file note", "data-file": file.name },
    el("span", { title: `sha256 ${file.sha256}, from ${file.origin}` }, `${file.name} · ${bytes(file.size_bytes)}`),
    users.length ? ` · served as ${users.join(", ")}` : " · not served",
    operates && !users.length ? button("add", agent, file.name, "Serve…") : null,
    operates && !users.length && agent.models.deletes ? button("delete", agent, file.name, "Delete…") : null,
    operates ? users.filter((name) => !(agent.models.swapping ?? []).includes(name)).flatMap((name) => changes(agent, name)) : null,
  );
}

function changes(agent, name) {
  const expert = (agent.experts ?? []).find((one) => one.model === name);
  return [button("set", agent, name, "Change…", expert), button("remove", agent, name, "Stop serving")];
}

function pullButton(agent) {
  const from = agent.models.pull_from ?? [];
  return from.length ? button("pull", agent, from.join(", "), "Pull a model…") : null;
}

function pullRow(one) {
  const known = one.size_bytes !== null && one.size_bytes !== undefined;
  return el(
    "p",
    { class: "pulling note" },
    `pulls ${one.file} from ${one.source}: `,
    known ? el("progress", { max: one.size_bytes, value: one.done_bytes ?? 0 }) : "not begun yet",
    known ? ` ${one.size_bytes ? count((100 * (one.done_bytes ?? 0)) / one.size_bytes) : 0} %` : null,
  );
}

function fetchRow(one, push) {
  const done = Math.max(one.done_bytes, push?.done_bytes ?? 0);
  return el(
    "p",
    { class: "fetching note" },
    `fetches ${one.file} from ${one.source && one.source !== "coordinator" ? one.source : "the coordinator"}: `,
    el("progress", { max: one.size_bytes, value: done }),
    ` ${one.size_bytes ? count((100 * done) / one.size_bytes) : 0} %`,
  );
}

// What was refused or failed of late; it goes after a while, and with the next word about the same model or file.
function troubles(agent, fleet) {
  const since = Date.now() / 1000 - KEPT_S;
  const own = [...(fleet.model_orders ?? []), ...(fleet.pushes ?? []), ...(fleet.pulls ?? [])].filter((row) => row.agent_id === agent.agent_id);
  const latest = new Map(own.map((row) => [row.model ?? row.file, row]));
  return [...latest.values()]
    .filter((row) => row.given_unix_s > since && ["refused", "failed"].includes(row.state))
    .slice(-2)
    .map((row) => el("p", { class: "error" }, `${row.model ?? row.file} ${row.state}: ${row.message ?? ""}`));
}

// expert: as it is served now, for what a change begins with.
function button(verb, agent, name, label, expert) {
  const now = expert ? { "data-context": expert.context_tokens, "data-slots": expert.slots } : {};
  return el("button", { type: "button", class: "plain", "data-verb": verb, "data-host": agent.agent_id, "data-name": name, ...now }, label);
}

export function listenForOrders() {
  byId("hosts").addEventListener("click", async (event) => {
    const pressed = event.target.closest("button[data-verb]");
    if (!pressed) return;
    const { verb, host, name, context, slots } = pressed.dataset;
    const word = wordOf(verb, host, name, { context: context ?? "4096", slots: slots ?? "4" });
    if (!word) return;
    pressed.disabled = true;
    try {
      await request({ push: PUSHES, pull: PULLS }[verb] ?? ORDERS, { body: word });
    } catch (error) {
      window.alert(error.message);
    } finally {
      pressed.disabled = false;
    }
  });
}

function wordOf(verb, host, name, usual) {
  if (verb === "remove") return window.confirm(`Serve ${name} no longer on this host?`) ? { verb, name, hosts: [host] } : null;
  if (verb === "delete") return window.confirm(`Delete ${name} from this host's disk?`) ? { verb, name, hosts: [host] } : null;
  if (verb === "pull") {
    const source = window.prompt(`hf:ORG/REPO/FILE.gguf or https://…/FILE.gguf#sha256=…; this host pulls from ${name}:`)?.trim();
    return source ? { source, hosts: [host] } : null;
  }
  if (verb === "push") {
    const path = window.prompt("Name of a file in the coordinator's push.folder:");
    return path ? { path, hosts: [host] } : null;
  }
  const served = verb === "add" ? window.prompt("Serve it under which name?", name.replace(/\.gguf$/, "")) : name;
  if (!served) return null;
  const context = asked("Tokens of context, for all slots together:", usual.context);
  if (context === null) return null;
  const slots = asked("Requests at once (slots):", usual.slots);
  if (slots === null) return null;
  const cache = chosen("Keys and values are stored as f16, q8_0 or q4_0 (empty: as it is):", /^(f16|q8_0|q4_0)$/);
  if (cache === null) return null;
  const layers = chosen("Layers on the GPU, -1 for all (empty: as it is):", /^(-1|[0-9]{1,6})$/);
  if (layers === null) return null;
  const word = { verb, name: served, hosts: [host], context_tokens: context, slots };
  if (cache) word.cache_type = cache;
  if (layers) word.gpu_layers = Number(layers);
  return verb === "add" ? { ...word, file: name } : word;
}

// What was typed, if it is of this form; "" where it stays as it is, null where nothing is to be done.
function chosen(question, form) {
  const typed = window.prompt(question, "")?.trim();
  if (typed === undefined) return null;
  if (typed === "" || form.test(typed)) return typed;
  window.alert(`${typed} is none of these.`);
  return null;
}

// A whole number that was typed; null where nothing is to be done.
function asked(question, usual) {
  const typed = window.prompt(question, usual);
  if (typed === null) return null;
  if (/^[1-9][0-9]{0,8}$/.test(typed.trim())) return Number(typed);
  window.alert(`${typed} is no number of 1 or more.`);
  return null;
}
