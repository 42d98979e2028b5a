// A receipt as a person reads it: the decision, predicted against measured, who spent what.

import { countsOf, decisionView, predicted, quantileOf } from "./decision.js";
import { el } from "./dom.js";
import { DASH, count, digits, joules, perToken, seconds, words } from "./format.js";

const PHASES = ["overhead", "queue", "prefill", "decode"];

export function receiptView(receipt) {
  return el(
    "div",
    { class: "receipt" },
    el("p", { class: "decision" }, summary(receipt)),
    decisionView(receipt.decision),
    timeline(receipt.seconds),
    receipt.seconds.simulated ? el("p", { class: "note" }, el("span", { class: "chip simulated" }, "simulated"), " An expert was held to the speed of a host that is not there.") : null,
    el("div", { class: "tables" }, comparison(receipt), energyFacts(receipt)),
    attempts(receipt),
    el("details", { class: "raw" }, el("summary", {}, "Receipt as JSON"), el("pre", { tabindex: "0" }, JSON.stringify(receipt, null, 2))),
  );
}

// The line whose text was delivered; of a request that nobody answered, the last one tried. Null where several shared in it.
export function answererOf({ experts, collaboration }) {
  const delivered = experts.find((line) => line.outcome === "answered" && ["answer", "candidate"].includes(line.purpose));
  return delivered ?? (collaboration?.members.length > 1 ? null : (experts.at(-1) ?? null));
}

function summary(receipt) {
  const { experts, decision, collaboration, mode } = receipt;
  if (collaboration?.members.length) {
    const names = new Map(experts.map((line) => [line.expert, `${line.model} on ${line.agent}`]));
    const shares = collaboration.members.map((member) => `${names.get(member.expert)} (${digits(100 * member.weight)} %)`);
    const lost = collaboration.dropped.map((member) => names.get(member.expert));
    return [el("strong", {}, shares.join(", ")), ` answered together (${mode})${lost.length ? `, without ${lost.join(", ")}` : ""}.`];
  }
  const answerer = answererOf(receipt);
  if (!answerer) return "No expert was tried: nobody could take it.";
  const { candidates, experts: considered } = decision ? countsOf(decision) : {};
  const among = decision ? ` among ${count(candidates)} ${candidates === 1 ? "candidate" : "candidates"} of ${count(considered)}` : "";
  const tried = experts.length > 1 ? `; ${experts.length - 1} more tried it` : "";
  return [el("strong", {}, `${answerer.model} on ${answerer.agent}`), ` was chosen${among}${tried}.`];
}

function timeline(times) {
  const total = times.total;
  if (!total) return null;
  const parts = PHASES.map((name) => [name, times[name]]).filter(([, value]) => value > 0);
  const rest = total - parts.reduce((sum, [, value]) => sum + value, 0);
  if (rest > 0) parts.push(["rest", rest]);
  // The agent's clockwork and the coordinator's overlap a little; the bar is scaled to what it shows.
  const shown = parts.reduce((sum, [, value]) => sum + value, 0);
  const bar = el("div", { class: "timeline", role: "img", "aria-label": parts.map(([name, value]) => `${label(name)} ${seconds(value)}`).join(", ") });
  for (const [name, value] of parts) {
    const part = el("span", { class: name, title: `${label(name)}: ${seconds(value)}` });
    part.style.flexGrow = String(value / shown);
    bar.append(part);
  }
  return el(
    "div",
    {},
    bar,
    el("p", { class: "legend" }, parts.map(([name, value]) => el("span", { class: name }, `${label(name)} ${seconds(value)}`))),
  );
}

const label = (name) => (name === "rest" ? "network and energy settling" : name);

function comparison({ seconds: times, predicted: expected, energy, decision }) {
  const quantile = quantileOf(decision);
  const rows = [
    ["First token", expected?.ttft_s, times.ttft, seconds],
    ["Total", expected?.total_s, times.total, seconds],
    ["Energy", expected?.energy_j, energy.joules, joules],
  ];
  return el(
    "table",
    {},
    el("thead", {}, el("tr", {}, ["", "p50", "p95", "measured", "off p50"].map((name) => el("th", { scope: "col" }, name)))),
    el(
      "tbody",
      {},
      rows.map(([name, quantiles, measured, show]) =>
        el(
          "tr",
          { class: quantiles && measured !== null && measured > quantiles[quantile] ? "beyond" : null, title: quantiles && measured > quantiles[quantile] ? `beyond the predicted ${quantile}` : null },
          el("th", { scope: "row" }, name),
          el("td", {}, predicted(quantiles, "p50", show)),
          el("td", {}, predicted(quantiles, "p95", show)),
          el("td", {}, show(measured)),
          el("td", {}, offBy(quantiles?.p50, measured)),
        ),
      ),
    ),
  );
}

function offBy(expected, measured) {
  if (!expected || measured === null) return DASH;
  const ratio = measured / expected;
  if (ratio >= 2 || ratio <= 0.5) return `×${digits(ratio)}`;
  return `${ratio >= 1 ? "+" : "−"}${digits(Math.abs(ratio - 1) * 100)} %`;
}

function energyFacts({ energy, tokens }) {
  const each = energy.joules !== null && tokens.decoded ? energy.joules / tokens.decoded : null;
  const rows = [
    ["Energy", joules(energy.joules)],
    ["Per token", perToken(each)],
    ["Tokens a step", tokensAStep(tokens)],
    ["Quality", words(energy.quality)],
    ["Measured", [energy.scope && words(energy.scope), energy.source].filter(Boolean).join(", ") || null],
    ["Share", energy.attribution && words(energy.attribution)],
    ["Coverage", energy.coverage === null ? null : `${digits(100 * energy.coverage)} %`],
    ["Note", energy.reason],
  ];
  return el("table", { class: "facts" }, el("tbody", {}, rows.filter(([, value]) => value).map(([name, value]) => el("tr", {}, el("th", { scope: "row" }, name), el("td", {}, value)))));
}

// How many tokens a step of the model brought, as those that were guessed right need none of their own.
function tokensAStep({ decoded, drafted, accepted }) {
  if (!decoded || drafted === null || drafted === undefined) return null;
  return `${digits(decoded / Math.max(1, decoded - accepted))} (${count(accepted)} of ${count(drafted)} guesses right)`;
}

function attempts({ experts }) {
  if (!experts.length) return null;
  return el(
    "table",
    { class: "attempts" },
    el("thead", {}, el("tr", {}, ["Tried", "Outcome", "Tokens", "Energy"].map((name) => el("th", { scope: "col" }, name)))),
    el(
      "tbody",
      {},
      experts.map((line) =>
        el(
          "tr",
          {},
          el("td", {}, `${line.model} on ${line.agent}`, line.error ? el("p", { class: "error" }, line.error) : null),
          el("td", {}, line.purpose === "answer" ? line.outcome : `${line.purpose}: ${line.outcome}`),
          el("td", {}, count(line.decoded_tokens)),
          el("td", {}, energyCell(line.energy)),
        ),
      ),
    ),
  );
}

export function energyCell(energy) {
  const text = joules(energy.joules);
  const chips = { simulated: "simulated", partial: "partial", estimated: "estimated" };
  const chip = chips[energy.quality];
  return el("span", { class: energy.joules === null ? "unknown" : null, title: energy.reason }, text, chip ? " " : null, chip ? el("span", { class: `chip ${chip}` }, chip) : null);
}
