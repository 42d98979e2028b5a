// Requests as they run and end, newest first.

import { byId, el, show } from "./dom.js";
import { clock, count, seconds, words } from "./format.js";
import { answererOf, energyCell, receiptView } from "./receipt.js";

const MOST_SHOWN = 100;
const MOST_RUNNING_SHOWN = 8;
const MARKS = { completed: "✓", failed: "✕", cancelled: "–" };
let paused = false;
let held = [];
let nSkipped = 0;

export function startRequests() {
  const button = byId("pause");
  button.addEventListener("click", () => {
    paused = !paused;
    button.setAttribute("aria-pressed", String(paused));
    button.textContent = paused ? "Go on" : "Pause";
    if (!paused) {
      prepend(held);
      held = [];
    }
    note();
  });
  note();
}

export function resetRequests(requests) {
  byId("ended").replaceChildren();
  held = [];
  nSkipped = 0;
  prepend(requests.slice(-MOST_SHOWN));
  note();
}

export function addRequests(requests, skipped) {
  nSkipped += skipped;
  if (paused) held = [...held, ...requests].slice(-MOST_SHOWN);
  else prepend(requests);
  note();
}

function prepend(requests) {
  const list = byId("ended");
  if (!requests.length) return;
  list.querySelector(".empty")?.remove();
  for (const ended of requests) list.prepend(row(ended));
  // A row that somebody is reading stays.
  for (const old of [...list.children].slice(MOST_SHOWN)) if (!old.open) old.remove();
}

function note() {
  const parts = [];
  if (paused && held.length) parts.push(`${held.length} new`);
  if (nSkipped) parts.push(`${nSkipped.toLocaleString("en")} too many to show`);
  byId("requests-note").textContent = parts.join(" · ");
  const list = byId("ended");
  if (!list.children.length) list.append(el("p", { class: "empty" }, "No request has ended yet. Send one from the playground."));
}

function row(ended) {
  const { receipt } = ended;
  const details = el(
    "details",
    { class: `request ${ended.outcome}`, "data-id": receipt.request_id },
    el(
      "summary",
      {},
      el("span", { class: "mark", title: ended.outcome }, MARKS[ended.outcome], el("span", { class: "sr" }, ended.outcome)),
      el("span", { class: "time" }, clock(ended.ended_at_unix_s)),
      el("span", { class: "who" }, who(ended), tries(receipt), ended.outcome === "failed" ? el("em", {}, words(ended.reason)) : null),
      cell("tokens", count(receipt.tokens.decoded)),
      cell("first token", seconds(receipt.seconds.ttft)),
      cell("total", seconds(receipt.seconds.total)),
      cell("energy", energyCell(receipt.energy)),
    ),
  );
  details.addEventListener("toggle", () => open(details, ended), { once: true });
  return details;
}

function who({ asked_model, receipt }) {
  const answerer = answererOf(receipt);
  if (answerer) return [el("b", {}, answerer.model), ` on ${answerer.agent}`];
  const n = receipt.collaboration?.members.length;
  return n ? [el("b", {}, `${n} experts`)] : [el("b", {}, asked_model), " nobody"];
}

// Most receipts are never opened; their details are drawn when one is.
function open(details, ended) {
  const asked = ended.asked_model === "moe2" ? "The client left the choice to the coordinator." : `The client asked for ${ended.asked_model}.`;
  details.append(
    el(
      "div",
      { class: "inside" },
      ended.message ? el("p", { class: "error" }, ended.message) : null,
      el("p", { class: "note" }, asked, " ", el("code", {}, ended.receipt.request_id)),
      receiptView(ended.receipt),
    ),
  );
}

function tries({ experts, mode, collaboration }) {
  if (collaboration) return el("span", { class: "chip", title: "experts worked together" }, mode);
  return experts.length > 1 ? el("span", { class: "chip", title: "experts tried" }, `${experts.length} tries`) : null;
}

const cell = (name, value) => el("span", { class: "cell", "data-name": name }, value);

export function drawRunning(running, nActive) {
  const shown = running.slice(0, MOST_RUNNING_SHOWN);
  show(
    byId("running"),
    shown.map((request) =>
      el(
        "span",
        { class: request.answering ? "flying answering" : "flying", title: request.request_id },
        el("i", {}),
        request.agents.at(-1) ?? "choosing",
        el("small", {}, `${request.answering ? "answering" : "waiting"} ${request.age_s.toFixed(1)} s`),
      ),
    ),
    nActive > shown.length ? el("span", { class: "flying more" }, `and ${nActive - shown.length} more`) : null,
  );
}
