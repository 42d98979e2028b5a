// A decision of the two levels: who was in, who was out and why, within which budgets, and how good it provably is.

import { el } from "./dom.js";
import { DASH, UNMEASURED, count, digits, joules, points, seconds, words } from "./format.js";

const BUDGETS = {
  energy_budget_j: ["energy", joules],
  latency_budget_s: ["total", seconds],
  ttft_budget_s: ["first token", seconds],
  tpot_budget_s: ["per token", seconds],
  max_experts: ["experts", String],
};

export function decisionView(decision, { open = false } = {}) {
  if (!decision) return null;
  return el(
    "div",
    { class: "decision-facts" },
    el("p", { class: "note" }, setting(decision)),
    expertTable(decision.experts, quantileOf(decision)),
    leftOut(decision),
    el("details", { class: "raw", open }, el("summary", {}, "Proof"), certificate(decision.certificate)),
  );
}

// Of a large fleet only the experts that matter to the decision are listed.
export const countsOf = (decision) => decision.counts ?? { experts: decision.experts.length, candidates: decision.experts.filter((expert) => expert.candidate).length };

function leftOut(decision) {
  const left = countsOf(decision).experts - decision.experts.length;
  return left > 0 ? el("p", { class: "note" }, `and ${count(left)} more, of which ${count(Math.max(0, countsOf(decision).candidates - decision.experts.filter((expert) => expert.candidate).length))} keep the budgets`) : null;
}

export const quantileOf = (decision) => (decision?.budgets?.quantile === "p50" ? "p50" : "p95");

export const predicted = (quantiles, quantile, show) => (quantiles ? show(quantiles[quantile]) : UNMEASURED);

function setting({ budgets, category, kind, price }) {
  const limits = Object.entries(BUDGETS).flatMap(([name, [title, show]]) => (budgets[name] === undefined ? [] : [`${title} ≤ ${show(budgets[name])}`]));
  const parts = [limits.length ? `Budgets: ${limits.join(", ")} (${quantileOf({ budgets })})` : "No budgets"];
  if (category) parts.push(`category ${words(category)}`);
  if (kind) parts.push(`kind ${words(kind)}`);
  if (price) parts.push(`price ${points(price.price_per_j)}${priceScopes(price)}`);
  return parts.join(" · ");
}

function priceScopes({ scopes }) {
  return scopes.length ? ` (${scopes.map((scope) => `${scope.scope}: ${joules(scope.average_energy_j)} an answer`).join(", ")})` : "";
}

function expertTable(experts, quantile) {
  if (!experts.length) return null;
  const columns = ["", "Expert", "Score", `Energy ${quantile}`, `Total ${quantile}`];
  const sorted = [...experts].sort((a, b) => b.chosen - a.chosen || b.candidate - a.candidate || b.score - a.score);
  return el(
    "table",
    { class: "candidates" },
    el("thead", {}, el("tr", {}, columns.map((name) => el("th", { scope: "col" }, name)))),
    el("tbody", {}, sorted.map((expert) => expertRow(expert, quantile))),
  );
}

function expertRow(expert, quantile) {
  const simulated = expert.energy_j && expert.energy_quality === "simulated";
  const role = expert.chosen ? "chosen" : expert.candidate ? "candidate" : "out";
  return el(
    "tr",
    { class: role },
    el("td", { title: role }, { chosen: "✓", candidate: "○", out: "✕" }[role], el("span", { class: "sr" }, role)),
    el("td", {}, `${expert.model} on ${expert.agent}`, expert.reason ? el("p", { class: "note" }, expert.reason) : null),
    el("td", { title: expert.score_source === "prior" ? "a prior by model size: the gate has not seen this expert" : "from the gate" }, digits(expert.score)),
    el("td", { class: expert.energy_j ? null : "unknown" }, predicted(expert.energy_j, quantile, joules), simulated ? " " : null, simulated ? el("span", { class: "chip simulated" }, "simulated") : null),
    el("td", { class: expert.total_s ? null : "unknown" }, predicted(expert.total_s, quantile, seconds)),
  );
}

function certificate(facts) {
  const rows = [
    ["Method", facts.method],
    ["Status", words(facts.status)],
    ["Value", facts.value === null ? DASH : digits(facts.value)],
    ["Upper bound", facts.upper_bound === null ? DASH : digits(facts.upper_bound)],
    ["Gap", facts.gap === null ? DASH : digits(facts.gap)],
    ["Nodes", digits(facts.nodes)],
    ["Took", seconds(facts.elapsed_s)],
  ];
  return el("table", { class: "facts" }, el("tbody", {}, rows.map(([name, value]) => el("tr", {}, el("th", { scope: "row" }, name), el("td", {}, value)))));
}
