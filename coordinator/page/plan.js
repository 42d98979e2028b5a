// A plan: which experts the coordinator would run for this request, why, how sure it is, and what else could be had.

import { el, svg } from "./dom.js";
import { DASH, UNMEASURED, digits, joules, seconds, words } from "./format.js";

const WIDTH = 340;
const HEIGHT = 190;
const PAD = { left: 48, right: 16, top: 12, bottom: 30 };

export function planView(plan) {
  const experts = plan.experts ?? [];
  const chosen = experts.filter((expert) => expert.chosen);
  return el(
    "div",
    { class: "plan" },
    el("h3", {}, "Plan"),
    el("p", { class: "decision" }, chosen.length ? ["Would run ", el("strong", {}, chosen.map((expert) => `${expert.model} on ${expert.agent}`).join(", ")), "."] : "No expert would be run."),
    experts.length ? expertTable(experts) : null,
    frontier(plan.frontier ?? []),
    certificate(plan.certificate),
    el("details", { class: "raw" }, el("summary", {}, "Plan as JSON"), el("pre", { tabindex: "0" }, JSON.stringify(plan, null, 2))),
  );
}

function expertTable(experts) {
  const columns = ["", "Expert", "Score", "Energy", "Time", "Why"];
  return el(
    "table",
    { class: "attempts" },
    el("thead", {}, el("tr", {}, columns.map((name) => el("th", { scope: "col" }, name)))),
    el(
      "tbody",
      {},
      experts.map((expert) =>
        el(
          "tr",
          { class: expert.chosen ? "chosen" : null },
          el("td", {}, expert.chosen ? "✓" : "", el("span", { class: "sr" }, expert.chosen ? "chosen" : "not chosen")),
          el("td", {}, `${expert.model} on ${expert.agent}`),
          el("td", {}, typeof expert.score === "number" ? digits(expert.score) : DASH),
          el("td", {}, typeof expert.energy_j === "number" ? joules(expert.energy_j) : UNMEASURED),
          el("td", {}, typeof expert.seconds === "number" ? seconds(expert.seconds) : UNMEASURED),
          el("td", {}, expert.reason ? words(expert.reason) : ""),
        ),
      ),
    ),
  );
}

// Offers by energy and time. Those whose figures are not known cannot be drawn.
function frontier(offers) {
  const known = offers.filter((offer) => typeof offer.energy_j === "number" && typeof offer.seconds === "number");
  if (!known.length) return null;
  const mostJ = Math.max(...known.map((offer) => offer.energy_j)) * 1.1 || 1;
  const mostS = Math.max(...known.map((offer) => offer.seconds)) * 1.1 || 1;
  const x = (energyJ) => PAD.left + (energyJ / mostJ) * (WIDTH - PAD.left - PAD.right);
  const y = (timeS) => HEIGHT - PAD.bottom - (timeS / mostS) * (HEIGHT - PAD.top - PAD.bottom);
  const value = (offer) => offer.value ?? offer.score;
  const drawing = svg("svg", { class: "frontier", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `${known.length} offers by energy and time` });
  drawing.append(
    svg("line", { class: "grid", x1: PAD.left, x2: WIDTH - PAD.right, y1: y(0), y2: y(0) }),
    svg("line", { class: "grid", x1: PAD.left, x2: PAD.left, y1: PAD.top, y2: y(0) }),
    svg("text", { class: "axis", x: WIDTH - PAD.right, y: HEIGHT - 8, "text-anchor": "end" }, `energy, up to ${joules(mostJ)}`),
    svg("text", { class: "axis", x: PAD.left, y: HEIGHT - 8 }, "0"),
    svg("text", { class: "axis", x: PAD.left - 6, y: PAD.top + 10, "text-anchor": "end" }, seconds(mostS)),
  );
  for (const offer of known) {
    const label = `${joules(offer.energy_j)}, ${seconds(offer.seconds)}${typeof value(offer) === "number" ? `, value ${digits(value(offer))}` : ""}`;
    drawing.append(
      svg("circle", { class: offer.chosen ? "offer chosen" : "offer", cx: x(offer.energy_j), cy: y(offer.seconds), r: offer.chosen ? 6 : 4.5 }, svg("title", {}, label)),
    );
    if (typeof value(offer) === "number") drawing.append(svg("text", { class: "axis", x: x(offer.energy_j) + 8, y: y(offer.seconds) + 4 }, digits(value(offer))));
  }
  return el("figure", {}, drawing, el("figcaption", { class: "note" }, "Best offers by energy and time; the figure beside each is its expected value."));
}

function certificate(facts) {
  if (!facts) return null;
  const shown = (value) => (typeof value === "number" ? digits(value) : typeof value === "object" ? JSON.stringify(value) : String(value));
  return el(
    "details",
    { class: "raw" },
    el("summary", {}, "Certificate"),
    el("table", { class: "facts" }, el("tbody", {}, Object.entries(facts).filter(([, value]) => value !== null).map(([name, value]) => el("tr", {}, el("th", { scope: "row" }, words(name)), el("td", {}, shown(value)))))),
  );
}
