// Average budgets: what an answer may take, what it takes, and the price of a joule that keeps the two together.

import { byId, el, show } from "./dom.js";
import { DASH, count, joules, points } from "./format.js";

export function drawAverages({ averages = [] }) {
  const section = byId("averages");
  section.hidden = !averages.length;
  show(section, averages.length ? table(averages) : null);
}

const COLUMNS = ["Average of", "Wanted", "Taken", "Price", "Answers"];

function table(averages) {
  return el(
    "table",
    { class: "averages" },
    el("thead", {}, el("tr", {}, COLUMNS.map((name) => el("th", { scope: "col" }, name)))),
    el("tbody", {}, averages.map(row)),
  );
}

function row(average) {
  const blind = average.n_unmeasured ? ` + ${count(average.n_unmeasured)} unmeasured` : "";
  const title = average.saturated ? "the cheapest expert answers all of them" : "over about the last hundred answers";
  const taken = average.mean_j === null ? [DASH] : [joules(average.mean_j), " ", average.simulated ? el("span", { class: "chip simulated" }, "simulated") : null];
  const cells = [
    [{}, joules(average.average_energy_j)],
    [{ class: average.mean_j === null ? "unknown" : average.saturated ? "error" : null, title }, ...taken],
    [{ title: "score that so many joules have to bring, in points of a hundred" }, points(average.price_per_j)],
    [{}, count(average.n_answers), blind],
  ];
  // On a narrow screen each cell stands in a line of its own, beside its column's name.
  const named = cells.map(([about, ...content], i) => el("td", { ...about, "data-name": COLUMNS[i + 1] }, ...content));
  return el("tr", {}, el("th", { scope: "row" }, average.scope), ...named);
}
