// The figures at the top.

import { byId, el, show } from "./dom.js";
import { DASH, UNMEASURED, count, digits, joules, median, seconds, watts } from "./format.js";

const WINDOW_S = 60;

// Energy per decoded token over requests whose energy is known; null if none is.
export function perTokenOf(lines) {
  let spent = 0;
  let tokens = 0;
  for (const line of lines) {
    if (line.energy.joules === null || !line.decoded_tokens) continue;
    spent += line.energy.joules;
    tokens += line.decoded_tokens;
  }
  return tokens ? spent / tokens : null;
}

// Beyond this two numbers do not fit beside each other.
const MANY = 1000;

export const linesOf = (requests) => requests.flatMap((ended) => ended.receipt.experts);

export function drawTiles({ fleet, power, requests, bins, binS }) {
  const { agents, connected, experts, experts_ready: ready, slots, slots_active: active, queued } = fleet.counts;
  // Whole intervals only: the one that is being filled would always look slow.
  const now = bins.at(-1)?.start_unix_s ?? 0;
  const past = bins.filter((bin) => bin.start_unix_s < now && bin.start_unix_s >= now - WINDOW_S);
  const spanS = Math.min(WINDOW_S, Math.max(binS, now - (bins[0]?.start_unix_s ?? now)));
  const sum = (field) => past.reduce((total, bin) => total + bin[field], 0);
  const lines = linesOf(requests);
  const energy = perTokenOf(lines);
  const simulated = lines.some((line) => line.energy.quality === "simulated");
  const ttfts = requests.slice(-50).map((ended) => ended.receipt.seconds.ttft);

  show(
    byId("tiles"),
    tile("Experts ready", experts < MANY ? `${ready} / ${experts}` : count(ready), `${experts < MANY ? "" : `of ${count(experts)} · `}${count(connected)} of ${count(agents)} hosts connected`),
    tile("Fleet power", watts(power.power_w), powerNote(power), power.simulated && power.power_w !== null),
    tile("Energy per token", energy === null ? UNMEASURED : joules(energy), energyNote(requests), simulated && energy !== null),
    tile("Energy per answer", perAnswer(fleet.energy), balanceNote(fleet.energy), fleet.energy?.quality === "simulated" && fleet.energy.j_per_answer !== null),
    tile("Throughput", past.length ? `${digits(sum("tokens") / spanS)} tok/s` : DASH, past.length ? `${digits((60 * sum("n_requests")) / spanS)} requests/min` : "first minute"),
    tile("In progress", count(fleet.requests_active), `${count(active)} of ${count(slots)} slots · ${count(queued)} queued`),
    tile("First token", seconds(median(ttfts)), "median of the last 50"),
  );
}

function tile(name, value, note, simulated = false) {
  return el(
    "div",
    { class: value === UNMEASURED ? "tile unknown" : "tile" },
    el("h3", {}, name),
    el("p", { class: "value" }, value),
    el("p", { class: "note" }, simulated ? el("span", { class: "chip simulated" }, "simulated") : null, simulated ? " " : null, note),
  );
}

function powerNote({ n_known, n_unknown }) {
  if (n_unknown && n_known) return `${count(n_unknown)} of ${count(n_known + n_unknown)} hosts unmeasured`;
  return n_unknown ? "no host has a power sensor" : `${count(n_known)} ${n_known === 1 ? "host" : "hosts"}`;
}

export function perAnswer(energy) {
  if (!energy || energy.j_per_answer === null) return UNMEASURED;
  return `${energy.unmeasured ? "at least " : ""}${joules(energy.j_per_answer)}`;
}

// What hosts used for no request, beside what requests used.
function balanceNote(energy) {
  if (!energy || energy.idle_j === null) return "with waiting; no host has a power sensor";
  const spent = [["requests", energy.requests_j], ["waiting", energy.idle_j], ["loading", energy.loading_j], ["waking", energy.waking_j], ["other", energy.other_j]];
  const told = spent.filter(([, value]) => value > 0).map(([name, value]) => `${joules(value)} ${name}`).join(", ");
  return `with waiting: ${told || "nothing spent yet"}${energy.unmeasured ? `; ${count(energy.unmeasured)} ${energy.unmeasured === 1 ? "request" : "requests"} unmeasured` : ""}`;
}

// Counted by requests, not by attempts: one that was tried twice is one of the last so many.
export function energyNote(requests) {
  if (!requests.length) return "no request yet";
  const unknown = requests.filter((ended) => ended.receipt.experts.some((line) => line.energy.joules === null && line.decoded_tokens)).length;
  return unknown ? `${unknown} of the last ${requests.length} requests unmeasured` : `last ${requests.length} requests`;
}
