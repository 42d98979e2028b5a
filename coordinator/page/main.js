// Puts the page together: one live feed in, every view drawn from the same state.

import { follow, key, setKey } from "./client.js";
import { drawChart, startChart } from "./chart.js";
import { byId, el } from "./dom.js";
import { drawAverages } from "./averages.js";
import { drawStandby } from "./standby.js";
import { drawFleet, drawWarnings } from "./fleet.js";
import { duration } from "./format.js";
import { startPlayground, offerModels, offerPlan } from "./playground.js";
import { addRequests, drawRunning, resetRequests, startRequests } from "./requests.js";
import { drawTiles } from "./tiles.js";

const KEPT_REQUESTS = 200;
const KEPT_BINS = 360;
const state = { fleet: null, power: null, requests: [], bins: [], binS: 10 };

function hello(data) {
  Object.assign(state, { requests: data.requests, bins: data.energy.bins, binS: data.energy.bin_s });
  offerPlan(data.features.plan);
  resetRequests(data.requests);
  drawChart(state);
}

function tick(data) {
  if (data.requests) {
    state.requests = [...state.requests, ...data.requests].slice(-KEPT_REQUESTS);
    addRequests(data.requests, data.n_skipped);
  }
  if (!data.fleet) return;
  state.fleet = data.fleet;
  state.power = data.power;
  if (data.bin) {
    if (state.bins.at(-1)?.start_unix_s === data.bin.start_unix_s) state.bins.pop();
    state.bins = [...state.bins, data.bin].slice(-KEPT_BINS);
  }
  drawTiles(state);
  drawWarnings(data.fleet.warnings);
  drawFleet(state);
  drawAverages(state.fleet);
  drawStandby(state.fleet);
  drawRunning(data.running, data.fleet.requests_active);
  drawChart(state);
  offerModels(data.fleet.agents);
  const { version, uptime_s, draining } = data.fleet;
  byId("footer").textContent = `moe2 ${version} · up ${duration(uptime_s)}${draining ? " · shutting down" : ""}`;
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
byId("hosts").append(el("p", { class: "empty" }, "Waiting for the coordinator…"));
follow("/v1/moe2/events", {
  onEvent: (event, data) => (event === "hello" ? hello(data) : tick(data)),
  onState: showState,
});
