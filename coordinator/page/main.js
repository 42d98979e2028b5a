// Puts the page together: one live feed in, every view drawn from the same state.

import { follow, key, setKey } from "./client.js";
import { drawChart, startChart } from "./chart.js";
import { byId, el } from "./dom.js";
import { drawAverages } from "./averages.js";
import { drawStandby } from "./standby.js";
import { drawFinder, feedPath, startFinder } from "./finder.js";
import { drawFleet, drawWarnings } from "./fleet.js";
import { listenForOrders, offerOrders } from "./models.js";
import { duration } from "./format.js";
import { startPlayground, offerModels, offerPlan } from "./playground.js";
import { addRequests, drawRunning, resetRequests, startRequests } from "./requests.js";
import { drawTiles } from "./tiles.js";

const KEPT_REQUESTS = 200;
const KEPT_BINS = 360;
const state = { fleet: null, power: null, requests: [], bins: [], binS: 10 };
const hosts = new Map();

function hello(data) {
  hosts.clear();
  Object.assign(state, { fleet: null, bins: data.energy.bins, binS: data.energy.bin_s });
  offerPlan(data.features.plan);
  offerOrders(Boolean(data.features.operate));
  if (data.after) {
    ended(data.requests, 0);
  } else {
    state.requests = data.requests;
    resetRequests(data.requests);
  }
  drawChart(state);
}

function ended(requests, skipped) {
  state.requests = [...state.requests, ...requests].slice(-KEPT_REQUESTS);
  addRequests(requests, skipped);
}

// Takes in what has changed of the fleet since the last tick.
function take(news) {
  for (const agent of news.agents ?? []) hosts.set(agent.agent_id, agent);
  const ids = news.agent_ids ?? state.fleet.agent_ids;
  for (const id of [...hosts.keys()]) if (!ids.includes(id)) hosts.delete(id);
  state.fleet = { ...state.fleet, ...news, agents: ids.map((id) => hosts.get(id)) };
}

function tick(data) {
  if (data.requests) ended(data.requests, data.n_skipped);
  if (!data.fleet) return;
  take(data.fleet);
  state.power = data.power;
  if (data.bin) {
    if (state.bins.at(-1)?.start_unix_s === data.bin.start_unix_s) state.bins.pop();
    state.bins = [...state.bins, data.bin].slice(-KEPT_BINS);
  }
  drawTiles(state);
  drawWarnings(state.fleet);
  drawFleet(state);
  drawFinder(state.fleet);
  drawAverages(state.fleet);
  drawStandby(state);
  drawRunning(data.running, state.fleet.requests_active);
  drawChart(state);
  offerModels(state.fleet.counts.models);
  const { version, uptime_s, draining, pair } = state.fleet;
  const among = pair ? ` · ${pair.name}${pair.preferred ? ", preferred" : ""}, ${pair.others.length ? `beside ${pair.others.join(", ")}` : "no other coordinator was seen"}` : "";
  byId("footer").textContent = `moe2 ${version} · up ${duration(uptime_s)}${among}${draining ? " · shutting down" : ""}`;
}

const STATES = { live: "Live", waiting: "Reconnecting", locked: "Key needed" };

// Whether the key in use has not been found wanting yet: each is asked about once, so that the dialog can be left.
let untried = true;

function showState(name, reason) {
  const live = byId("live");
  byId("key-reason").textContent = reason ?? "";
  if (name === "live") untried = true;
  if (name === "locked" && untried && !byId("key-dialog").open) {
    untried = false;
    askForKey();
  }
  if (live.dataset.state === name) return;
  live.dataset.state = name;
  live.textContent = STATES[name];
  document.body.dataset.feed = name;
}

function askForKey() {
  byId("key").value = key();
  byId("key-dialog").showModal();
}

function startKey() {
  const dialog = byId("key-dialog");
  byId("key-open").addEventListener("click", askForKey);
  dialog.addEventListener("close", () => {
    if (dialog.returnValue === "save") {
      untried = true;
      setKey(byId("key").value.trim());
    }
    byId("key").value = "";
  });
}

function startTheme() {
  const choice = byId("theme");
  const apply = () => {
    if (choice.value === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = choice.value;
  };
  choice.value = localStorage.getItem("moe2-theme") ?? "auto";
  choice.addEventListener("change", () => {
    localStorage.setItem("moe2-theme", choice.value);
    apply();
  });
  apply();
}

startTheme();
startKey();
startChart(() => drawChart(state));
startRequests();
startPlayground();
startFinder();
listenForOrders();
byId("hosts").append(el("p", { class: "empty" }, "Waiting for the coordinator…"));
follow((goesOn) => feedPath(goesOn ? (state.requests.at(-1)?.seq ?? 0) : 0), {
  onEvent: (event, data) => (event === "hello" ? hello(data) : tick(data)),
  onState: showState,
});
