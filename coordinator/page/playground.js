// Sends a prompt, streams the answer, shows the receipt; with a planner, shows the plan too.

import { ApiError, events, request } from "./client.js";
import { byId, el, show } from "./dom.js";
import { digits, seconds } from "./format.js";
import { planView } from "./plan.js";
import { receiptView } from "./receipt.js";

let canPlan = false;
let sending = null;

export function startPlayground() {
  const form = byId("prompt-form");
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (!sending) send();
  });
  form.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
  byId("stop").addEventListener("click", () => sending?.abort());
  byId("plan").addEventListener("click", () => form.reportValidity() && plan());
}

// Budgets and plans are offered only where the coordinator says that it can do them.
export function offerPlan(offered) {
  canPlan = offered;
  byId("budgets").hidden = !offered;
  byId("plan").hidden = !offered;
  if (!offered) byId("plan-view").hidden = true;
}

export function offerModels(names) {
  const select = byId("model");
  const wanted = ["moe2", ...names];
  if (wanted.join("\n") === [...select.options].map((option) => option.value).join("\n")) return;
  const chosen = select.value;
  select.replaceChildren(...wanted.map((name) => el("option", { value: name }, name === "moe2" ? "moe2 (the coordinator chooses)" : name)));
  select.value = wanted.includes(chosen) ? chosen : "moe2";
}

function number(id) {
  const { value } = byId(id);
  return value === "" ? undefined : Number(value);
}

const text = (id) => byId(id).value.trim() || undefined;

function body() {
  const choices = byId("choices").value.split("\n").map((line) => line.trim()).filter(Boolean);
  const budgets = canPlan
    ? {
        energy_budget_j: number("energy-budget"),
        latency_budget_s: number("latency-budget"),
        ttft_budget_s: number("ttft-budget"),
        max_experts: number("max-experts"),
        quantile: text("quantile"),
        mode: text("mode"),
        category: text("category"),
        choices: choices.length ? choices : undefined,
      }
    : {};
  const set = Object.fromEntries(Object.entries(budgets).filter(([, value]) => value !== undefined));
  return {
    model: byId("model").value,
    messages: [{ role: "user", content: byId("prompt").value }],
    max_tokens: number("max-tokens"),
    // A vote draws nothing: its members score the choices.
    temperature: set.mode === "vote" ? undefined : number("temperature"),
    ...(Object.keys(set).length ? { moe2: set } : {}),
  };
}

async function send() {
  sending = new AbortController();
  const began = performance.now();
  const elapsed = () => (performance.now() - began) / 1000;
  busy(true);
  byId("answer").hidden = false;
  byId("answer-text").textContent = "";
  byId("answer-text").classList.add("writing");
  byId("answer-receipt").replaceChildren();
  say("Waiting for the first token…");
  try {
    const response = await request("/v1/chat/completions", {
      body: { ...body(), stream: true, stream_options: { include_usage: true } },
      signal: sending.signal,
    });
    const agent = response.headers.get("x-moe2-agent");
    const firstS = elapsed();
    say(`${agent ?? "The fleet"} is answering; first token after ${seconds(firstS)}`);
    await read(response, firstS, elapsed);
  } catch (error) {
    if (error.name === "AbortError") say("Stopped. What was spent until then is in the list of requests.");
    else failed(error);
  } finally {
    sending = null;
    byId("answer-text").classList.remove("writing");
    busy(false);
  }
}

async function read(response, firstS, elapsed) {
  let ended = null;
  for await (const { data } of events(response)) {
    if (data === "[DONE]") break;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ApiError(200, chunk);
    const text = chunk.choices?.[0]?.delta?.content;
    if (text) byId("answer-text").append(text);
    ended = chunk.choices?.[0]?.finish_reason ?? ended;
    if (chunk.moe2) {
      byId("answer-receipt").replaceChildren(receiptView(chunk.moe2));
      const { decoded } = chunk.moe2.tokens;
      // What is chosen or scored as a whole arrives at once: that is no speed of decoding.
      const isWhole = chunk.moe2.collaboration && chunk.moe2.mode !== "mix";
      const speed = decoded > 1 && !isWhole ? `, ${digits((decoded - 1) / Math.max(elapsed() - firstS, 1e-3))} tok/s` : "";
      say(`${decoded ?? "?"} tokens in ${seconds(elapsed())}${speed}${ended === "length" ? "; cut off at the token limit" : ""}`);
    }
  }
}

function failed(error) {
  byId("answer-text").textContent ||= "";
  say(error instanceof ApiError ? error.message : "The coordinator cannot be reached.", true);
  if (error.receipt) byId("answer-receipt").replaceChildren(receiptView(error.receipt));
}

async function plan() {
  const view = byId("plan-view");
  view.hidden = false;
  show(view, el("p", { class: "note" }, "Planning…"));
  try {
    const response = await request("/v1/moe2/plan", { body: body() });
    show(view, planView(await response.json()));
  } catch (error) {
    show(view, el("p", { class: "error" }, error instanceof ApiError ? error.message : "The coordinator cannot be reached."));
  }
}

function say(text, isError = false) {
  const state = byId("answer-state");
  state.textContent = text;
  state.className = isError ? "error" : "note";
}

function busy(isBusy) {
  byId("send").disabled = isBusy;
  byId("stop").hidden = !isBusy;
}
