// Hosts, their experts and what is wrong with them.

import { byId, el, show, svg } from "./dom.js";
import { DASH, UNMEASURED, bytes, count, parameters, perToken, rate, seconds, watts, words } from "./format.js";
import { modelsOf } from "./models.js";
import { linesOf, perTokenOf } from "./tiles.js";

const KEPT_POWERS = 60;
const MOST_PIPS = 16;
const MOST_WARNINGS = 6;
const powers = new Map();

export function drawWarnings({ warnings, counts }) {
  const section = byId("warnings");
  const degraded = warnings.filter((warning) => warning.severity === "degraded");
  const notices = warnings.filter((warning) => warning.severity !== "degraded");
  const shown = degraded.length > MOST_WARNINGS ? degraded.slice(0, MOST_WARNINGS - 1) : degraded;
  const others = degraded.slice(shown.length);
  const untold = counts.warnings - warnings.length;
  section.hidden = !warnings.length;
  show(
    section,
    shown.map(warningView),
    folded(section, "others", `${count(others.length)} more`, others),
    folded(section, "notices", notices.length === 1 ? "1 notice" : `${count(notices.length)} notices`, notices),
    untold > 0 ? el("p", { class: "note" }, `and ${count(untold)} more: `, el("code", {}, "moe2-coordinator status --json")) : null,
  );
}

// Warnings behind a line that opens; it stays as it was left.
function folded(section, name, title, warnings) {
  const wasOpen = section.querySelector(`.${name}`)?.open;
  return warnings.length ? el("details", { class: `notices ${name}`, open: wasOpen }, el("summary", {}, title), warnings.map(warningView)) : null;
}

function warningView(warning) {
  return el(
    "div",
    { class: `warning ${warning.severity}` },
    el("span", { class: "chip" }, warning.severity),
    el("div", {}, el("p", { class: "what" }, withCode(warning.message)), el("p", { class: "remedy" }, withCode(warning.remedy))),
    el("code", {}, warning.code),
  );
}

// What stands between backticks is something to type.
const withCode = (text) => text.split("`").map((part, i) => (i % 2 ? el("code", {}, part) : part));

export function drawFleet({ fleet, requests }) {
  for (const id of powers.keys()) if (!fleet.agents.some((agent) => agent.agent_id === id)) powers.delete(id);
  const lines = Map.groupBy ? Map.groupBy(linesOf(requests), (line) => line.expert) : grouped(linesOf(requests));
  if (!fleet.agents.length && fleet.counts.agents) {
    show(byId("hosts"), el("p", { class: "empty" }, "There is no host like the one that was searched for."));
    return;
  }
  if (!fleet.agents.length) {
    show(
      byId("hosts"),
      el("p", { class: "empty" }, "Start an agent on a host that has a model: set ", el("code", {}, "coordinator.url"), " in its agent.toml to ", el("code", {}, fleet.agents_url), "."),
    );
    return;
  }
  show(byId("hosts"), fleet.agents.map((agent) => host(agent, fleet, lines)));
}

function grouped(lines) {
  const groups = new Map();
  for (const line of lines) groups.set(line.expert, [...(groups.get(line.expert) ?? []), line]);
  return groups;
}

export const isSimulated = (agent) => agent.sensors.some((sensor) => sensor.name.startsWith("profile:"));

function host(agent, fleet, lines) {
  const readings = agent.sensors.filter((sensor) => typeof sensor.power_w === "number");
  const power = agent.connected && readings.length ? readings.reduce((sum, sensor) => sum + sensor.power_w, 0) : null;
  const simulated = isSimulated(agent);
  const past = [...(powers.get(agent.agent_id) ?? []), power].slice(-KEPT_POWERS);
  powers.set(agent.agent_id, past);
  const [state, label] = linkState(agent);
  return el(
    "article",
    { class: "host", "data-state": state, "data-agent": agent.agent_name },
    el(
      "header",
      {},
      el("div", {}, el("h3", {}, el("span", { class: "dot", title: label }), agent.agent_name), el("p", { class: "note" }, about(agent, simulated))),
      el(
        "div",
        { class: "power" },
        el("p", { class: power === null ? "value unknown" : "value" }, agent.connected ? watts(power) : DASH),
        simulated ? el("span", { class: "chip simulated" }, "simulated") : sensorName(readings),
      ),
    ),
    past.some((value) => value !== null) ? sparkline(past) : null,
    agent.experts.length
      ? el("ul", { class: "experts" }, agent.experts.map((expert) => expertRow(agent, expert, lines.get(`${agent.agent_id}/${expert.model}`) ?? [])))
      : el("p", { class: "empty" }, agent.models?.takes_orders ? "It serves no model yet." : "It has not reported its experts yet."),
    modelsOf(agent, fleet),
    el(
      "footer",
      { class: "note" },
      el("span", {}, label),
      el("span", { title: "Round trip of the link's heartbeat" }, agent.rtt_s === null ? "" : `link ${seconds(agent.rtt_s)}`),
      el("span", {}, `v${agent.version}`),
    ),
  );
}

function linkState(agent) {
  if (agent.asleep) return ["off", "asleep"];
  if (!agent.connected) return ["off", "disconnected"];
  if (agent.draining) return ["busy", "draining"];
  return ["on", "connected"];
}

function about({ host }, simulated) {
  if (!host) return "";
  const text = [host.board ?? host.cpu_model ?? host.architecture, host.accelerator, host.power_mode].filter(Boolean).join(" · ");
  // The mark beside the power says it for the whole host.
  return simulated ? text.replaceAll(" (simulated)", "") : text;
}

function sensorName(readings) {
  return readings.length ? el("span", { class: "note" }, readings.map((sensor) => sensor.name).join(" + ")) : null;
}

// Which devices hold the model's layers; how many of them, where it is more than one.
function placed({ placement = [] }) {
  const holding = placement.filter((share) => share.layers);
  const total = holding.reduce((sum, share) => sum + share.layers, 0);
  return holding.map((share) => (share.layers === total ? `on ${share.device}` : `${share.layers}/${total} on ${share.device}`)).join(", ") || null;
}

function expertRow(agent, expert, lines) {
  const speed = expert.performance ?? {};
  const energy = speed.j_per_decoded_token ?? perTokenOf(lines);
  const simulated = energy !== null && isSimulated(agent);
  const facts = [parameters(expert.parameters), expert.quantization, expert.file_bytes > 1e6 ? bytes(expert.file_bytes) : null, `${count(expert.context_tokens)} ctx`, placed(expert)];
  return el(
    "li",
    { class: "expert", "data-state": expert.state },
    el(
      "div",
      { class: "expert-name" },
      el("strong", {}, expert.model),
      expert.state === "ready" ? null : el("span", { class: `chip ${expert.state}` }, stateWords(expert)),
      expert.restarts ? el("span", { class: "chip", title: "times its engine died" }, `${expert.restarts} restarts`) : null,
    ),
    el("p", { class: "note" }, facts.filter(Boolean).join(" · ")),
    expert.last_error ? el("p", { class: "error" }, expert.last_error) : null,
    expert.state === "ready"
      ? el(
          "dl",
          {},
          figure("Slots", slots(expert)),
          figure("Decode", rate(speed.decode_tokens_per_s)),
          figure("Energy", energy === null && !lines.length && agent.sensors.some((sensor) => sensor.power_w) ? DASH : perToken(energy), simulated ? "simulated" : lines.length ? `from the last ${lines.length} requests` : "no request yet"),
          figure("First token", speed.ttft_s ? seconds(speed.ttft_s) : DASH),
        )
      : null,
  );
}

function stateWords(expert) {
  const progress = expert.load_progress;
  return expert.state === "loading" && progress ? `loading ${Math.round(100 * progress)} %` : words(expert.state);
}

function figure(name, value, title = null) {
  return el("div", { title }, el("dt", {}, name), el("dd", { class: value === UNMEASURED ? "unknown" : null }, value));
}

function slots(expert) {
  const active = expert.active ?? 0;
  const queued = expert.queued ?? 0;
  const label = `${active} of ${expert.slots} slots in use, ${queued} queued`;
  const pips = Array.from({ length: Math.min(expert.slots, MOST_PIPS) }, (_, i) => el("i", { class: i < active ? "pip full" : "pip" }));
  return el("span", { class: "pips", role: "img", "aria-label": label, title: label }, pips, queued ? el("b", {}, `+${queued}`) : null);
}

function sparkline(values) {
  const most = Math.max(...values.filter((value) => value !== null), 1);
  const at = (i, value) => `${((i + KEPT_POWERS - values.length) * 100) / (KEPT_POWERS - 1)},${(23 - (value / most) * 21).toFixed(1)}`;
  const runs = [[]];
  values.forEach((value, i) => (value === null ? runs.push([]) : runs.at(-1).push(at(i, value))));
  return svg(
    "svg",
    { class: "spark", viewBox: "0 0 100 24", preserveAspectRatio: "none", "aria-hidden": "true" },
    runs.filter((run) => run.length > 1).map((run) => svg("polyline", { points: run.join(" "), "vector-effect": "non-scaling-stroke" })),
  );
}
