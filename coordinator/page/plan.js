// A plan: which expert would answer, why, how sure the coordinator is, and what other energy budgets would buy.

import { decisionView } from "./decision.js";
import { el, svg } from "./dom.js";
import { digits, joules, seconds, words } from "./format.js";

const WIDTH = 380;
const HEIGHT = 190;
const PAD = { left: 44, right: 14, top: 12, bottom: 32 };

export function planView(plan) {
  const chosen = plan.decision?.experts.filter((expert) => expert.chosen) ?? [];
  return el(
    "div",
    { class: "plan" },
    el("h3", {}, "Plan"),
    chosen.length
      ? el("p", { class: "decision" }, plan.decision.mode === "route" ? "Would be answered by " : `Would be answered (${plan.decision.mode}) by `, el("strong", {}, chosen.map((expert) => `${expert.model} on ${expert.agent}`).join(", ")), ` (${lengths(plan)}).`)
      : el("p", { class: "error" }, plan.refusal ?? "No expert would answer."),
    plan.offers ? offers(plan.offers) : null,
    decisionView(plan.decision),
    frontier(plan.frontier, plan.decision?.budgets.energy_budget_j),
    el("details", { class: "raw" }, el("summary", {}, "Plan as JSON"), el("pre", { tabindex: "0" }, JSON.stringify(plan, null, 2))),
  );
}

// The lengths that the predictions are for. Where the request sets no limit, they are learned from earlier answers.
function lengths(plan) {
  const prompt = `about ${plan.prompt_tokens} prompt tokens`;
  return plan.longest_answer_tokens == null
    ? `${prompt}, up to ${plan.answer_tokens} answer tokens`
    : `${prompt}, ${plan.answer_tokens} answer tokens (p50), ${plan.longest_answer_tokens} (p95)`;
}

// What the budgets would have to be, where they rule everybody out.
function offers(choices) {
  const known = Object.entries(choices).filter(([, offer]) => offer);
  return el(
    "ul",
    { class: "offers" },
    known.map(([name, offer]) => {
      const needs = Object.entries(offer.needs).map(([limit, value]) => `${words(limit)} ${digits(value)}`);
      return el("li", {}, el("strong", {}, words(name)), `: ${joules(offer.energy_j)}, ${seconds(offer.total_s)}`, needs.length ? `; needs ${needs.join(", ")}` : "");
    }),
  );
}

// Value over energy budget: a staircase, since a set is affordable or not.
function frontier(points, budgetJ) {
  const known = (points ?? []).filter((point) => point.value !== null);
  if (known.length < 2) return null;
  const mostJ = Math.max(...known.map((point) => point.energy_budget_j), budgetJ ?? 0) * 1.08;
  const values = known.map((point) => point.value);
  const [least, most] = [Math.min(...values), Math.max(...values)];
  const span = most - least || Math.abs(most) || 1;
  const x = (energyJ) => PAD.left + (energyJ / mostJ) * (WIDTH - PAD.left - PAD.right);
  const y = (value) => HEIGHT - PAD.bottom - ((value - least + 0.1 * span) / (1.2 * span)) * (HEIGHT - PAD.top - PAD.bottom);
  const bottom = HEIGHT - PAD.bottom;
  const drawing = svg("svg", { class: "frontier", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `Value from ${digits(least)} to ${digits(most)} for energy budgets up to ${joules(known.at(-1).energy_budget_j)}` });
  drawing.append(
    svg("line", { class: "grid", x1: PAD.left, x2: WIDTH - PAD.right, y1: bottom, y2: bottom }),
    svg("line", { class: "grid", x1: PAD.left, x2: PAD.left, y1: PAD.top, y2: bottom }),
    svg("text", { class: "axis", x: WIDTH - PAD.right, y: HEIGHT - 8, "text-anchor": "end" }, `energy budget, up to ${joules(mostJ)}`),
    svg("text", { class: "axis", x: PAD.left, y: HEIGHT - 8 }, "0"),
    svg("text", { class: "axis", x: PAD.left - 6, y: y(most) + 4, "text-anchor": "end" }, digits(most)),
  );
  if (most !== least) drawing.append(svg("text", { class: "axis", x: PAD.left - 6, y: y(least) + 4, "text-anchor": "end" }, digits(least)));
  const steps = known.flatMap((point, i) => (i ? [[point.energy_budget_j, known[i - 1].value], [point.energy_budget_j, point.value]] : [[point.energy_budget_j, point.value]]));
  steps.push([mostJ, known.at(-1).value]);
  drawing.append(svg("polyline", { class: "stairs", points: steps.map(([energyJ, value]) => `${x(energyJ).toFixed(1)},${y(value).toFixed(1)}`).join(" ") }));
  if (budgetJ !== undefined) drawing.append(svg("line", { class: "budget", x1: x(budgetJ), x2: x(budgetJ), y1: PAD.top, y2: bottom }));
  for (const point of known) {
    const title = `${joules(point.energy_budget_j)} buys ${digits(point.value)} with ${point.experts.length} candidates`;
    drawing.append(svg("circle", { class: "offer", cx: x(point.energy_budget_j), cy: y(point.value), r: 4 }, svg("title", {}, title)));
  }
  return el("figure", {}, drawing, el("figcaption", { class: "note" }, "What an energy budget can buy: the value of the best candidate set."));
}
