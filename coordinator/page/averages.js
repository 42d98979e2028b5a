// Average budgets: what an answer may take, what it takes, and the price of a joule that keeps the two together.

import { byId, el, show } from "./dom.js";
import { DASH, count, joules, points } from "./format.js";

export function drawAverages({ averages = [] }) {
  const section = byId("averages");
  section.hidden = !averages.length;
  show(section, averages.length ? table(averages) : null);
}

function table(averages) {
  const columns = ["Average of", "Wanted", "Taken", "Price", "Answers"];
  return el(
    "table",
    { class: "averages" },
    el("thead", {}, el("tr", {}, columns.map((name) => el("th", { scope: "col" }, name)))),
    el("tbody", {}, averages.map(row)),
  );
}

function row(average) {
  const blind = average.n_unmeasured ? ` + ${count(average.n_unmeasured)} unmeasured` : "";
  const title = average.saturated ? "the cheapest expert answers all of them" : "over about the last hundred answers";
  return el(
    "tr",
    {},
    el("th", { scope: "row" }, average.scope),
    el("td", {}, joules(average.average_energy_j)),
    el("td", { class: average.mean_j === null ? "unknown" : average.saturated ? "error" : null, title }, average.mean_j === null ? DASH : joules(average.mean_j), average.simulated ? " " : null, average.simulated ? el("span", { class: "chip simulated" }, "simulated") : null),
    el("td", { title: "score that a thousand joules have to bring, in points of a hundred" }, points(average.price_per_j)),
    el("td", {}, count(average.n_answers), blind),
  );
}
