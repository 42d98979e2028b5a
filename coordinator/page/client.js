// Talking to the coordinator: the API key, errors, server-sent events over fetch (EventSource cannot send a key).

const KEY = "moe2-key";

export const key = () => sessionStorage.getItem(KEY) ?? "";
export function setKey(value) {
  if (value) sessionStorage.setItem(KEY, value);
  else sessionStorage.removeItem(KEY);
  wake();
}

export class ApiError extends Error {
  constructor(status, body) {
    super(body?.error?.message ?? `The coordinator answered with status ${status}.`);
    this.status = status;
    this.receipt = body?.moe2 ?? null;
  }
}

export async function request(path, { body, signal } = {}) {
  const headers = {};
  if (key()) headers.Authorization = `Bearer ${key()}`;
  if (body) headers["Content-Type"] = "application/json";
  const response = await fetch(path, {
    method: body ? "POST" : "GET",
    headers,
    body: body ? JSON.stringify(body) : undefined,
    signal,
    cache: "no-store",
  });
  if (!response.ok) throw new ApiError(response.status, await response.json().catch(() => null));
  return response;
}

// Yields {event, data} as they come; ends with the stream.
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    buffer += value;
    const parts = buffer.split("\n\n");
    buffer = parts.pop();
    for (const part of parts) {
      const fields = { event: "message", data: "" };
      for (const line of part.split("\n")) {
        const [, name, text] = line.match(/^(\w+): ?(.*)$/) ?? [];
        if (name === "data") fields.data += text;
        else if (name === "event") fields.event = text;
      }
      if (fields.data) yield fields;
    }
  }
}

const FIRST_PAUSE_MS = 500;
const LONGEST_PAUSE_MS = 10_000;
let wake = () => {};
const pause = (ms) =>
  new Promise((done) => {
    wake = () => done(true);
    setTimeout(done, ms);
  });

let following = null;

// Follows the live feed anew, for other hosts than before; nothing else that was shown is lost.
export function refollow() {
  following?.abort();
  wake();
}

// Follows the live feed for ever; a new key is tried at once. pathOf: asked at each start, with whether it only goes on.
// onState: "live", "waiting", or "locked" and why.
export async function follow(pathOf, { onEvent, onState }) {
  let pauseMs = FIRST_PAUSE_MS;
  let goesOn = false;
  for (;;) {
    const current = (following = new AbortController());
    try {
      const response = await request(pathOf(goesOn), { signal: current.signal });
      for await (const { event, data } of events(response)) {
        if (current.signal.aborted) break;
        onState("live");
        pauseMs = FIRST_PAUSE_MS;
        onEvent(event, JSON.parse(data));
      }
      goesOn = current.signal.aborted;
      if (!goesOn) onState("waiting");
    } catch (error) {
      goesOn = current.signal.aborted;
      if (error instanceof ApiError && [401, 403].includes(error.status)) onState("locked", error.message);
      else if (!goesOn) onState("waiting");
    }
    if (goesOn) continue;
    const woken = await pause(pauseMs * (0.75 + Math.random() / 2));
    pauseMs = woken ? FIRST_PAUSE_MS : Math.min(2 * pauseMs, LONGEST_PAUSE_MS);
  }
}
