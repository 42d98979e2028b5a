// Which hosts of a large fleet are shown: found by name, state or model, a page at a time.

import { refollow } from "./client.js";
import { byId, el } from "./dom.js";
import { count } from "./format.js";

const HOSTS_PER_PAGE = 48;
const SMALL_FLEET = 12;
const TYPING_MS = 250;
const wanted = { q: "", state: "", model: "", offset: 0 };
let typing = 0;

export function startFinder() {
  byId("find-text").addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(() => find({ q: byId("find-text").value.trim() }), TYPING_MS);
  });
  byId("find-state").addEventListener("change", () => find({ state: byId("find-state").value }));
  byId("find-model").addEventListener("change", () => find({ model: byId("find-model").value }));
  byId("finder").addEventListener("submit", (event) => event.preventDefault());
  byId("hosts-before").addEventListener("click", () => turn(-1));
  byId("hosts-after").addEventListener("click", () => turn(1));
}

// The feed's parameters. after: number of the last request that is known, 0 to begin anew.
export function feedPath(after) {
  const set = Object.entries({ ...wanted, after }).filter(([, value]) => value);
  return `/v1/moe2/events?${new URLSearchParams([["limit", HOSTS_PER_PAGE], ...set])}`;
}

function find(changed) {
  Object.assign(wanted, changed, { offset: 0 });
  refollow();
}

function turn(pages) {
  wanted.offset = Math.max(0, wanted.offset + pages * HOSTS_PER_PAGE);
  refollow();
}

export function drawFinder({ counts, agents }) {
  const searched = wanted.q || wanted.state || wanted.model;
  byId("finder").hidden = counts.agents <= SMALL_FLEET && !searched;
  byId("pager").hidden = counts.matching <= HOSTS_PER_PAGE;
  byId("hosts-before").disabled = counts.offset === 0;
  byId("hosts-after").disabled = counts.offset + agents.length >= counts.matching;
  offer(byId("find-model"), counts.models);
  // Hosts that have left may leave the last pages empty.
  if (!agents.length && counts.offset > 0) find({});
  byId("fleet-note").textContent = noteOf(counts, agents.length, searched);
}

function noteOf(counts, shown, searched) {
  if (!counts.agents) return "no agent has connected yet";
  const of = searched ? `${count(counts.matching)} found of ${count(counts.agents)} hosts` : `${count(counts.agents)} hosts`;
  if (shown < counts.matching) return `${count(counts.offset + 1)} to ${count(counts.offset + shown)} of ${of}`;
  return searched || counts.agents > SMALL_FLEET ? of : "";
}

function offer(select, names) {
  const options = ["", ...names];
  if (options.join("\n") === [...select.options].map((option) => option.value).join("\n")) return;
  const chosen = select.value;
  select.replaceChildren(...options.map((name) => el("option", { value: name }, name || "any model")));
  select.value = options.includes(chosen) ? chosen : "";
}
