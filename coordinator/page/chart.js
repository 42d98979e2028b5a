// Joules of the requests (bars, by how they were obtained) and the fleet's power (line), over time.

import { byId, el, svg } from "./dom.js";
import { UNMEASURED, clock, digits, joules, watts, words } from "./format.js";

const HEIGHT = 220;
const MARGIN = { top: 14, right: 46, bottom: 26, left: 52 };
const MEASURED = ["exact", "measured_counter", "measured_integrated"];
const SERIES = [
  ["measured", "measured", MEASURED],
  ["partial", "partial (lower bound)", ["partial"]],
  ["estimated", "estimated", ["estimated"]],
  ["simulated", "simulated", ["simulated"]],
];
let minutes = 10;
let last = null;
let hovered = null;

export function startChart(redraw) {
  for (const button of document.querySelectorAll("[data-minutes]")) {
    button.addEventListener("click", () => {
      minutes = Number(button.dataset.minutes);
      for (const other of document.querySelectorAll("[data-minutes]")) other.setAttribute("aria-pressed", String(other === button));
      redraw();
    });
  }
  new ResizeObserver(redraw).observe(byId("chart"));
  const chart = byId("chart");
  chart.addEventListener("pointermove", (event) => point(event.clientX - chart.getBoundingClientRect().left));
  chart.addEventListener("pointerleave", () => pick(null));
  chart.addEventListener("keydown", (event) => {
    if (!last || !["ArrowLeft", "ArrowRight", "Escape"].includes(event.key)) return;
    event.preventDefault();
    const step = event.key === "ArrowLeft" ? -1 : 1;
    pick(event.key === "Escape" ? null : Math.min(last.n - 1, Math.max(0, (hovered ?? last.n) + step)));
  });
}

export function drawChart({ bins, binS }) {
  const chart = byId("chart");
  const width = chart.clientWidth;
  if (!width) return;
  const n = Math.round((minutes * 60) / binS);
  const end = bins.at(-1)?.start_unix_s ?? Math.floor(Date.now() / 1000 / binS) * binS;
  const byStart = new Map(bins.map((bin) => [bin.start_unix_s, bin]));
  const columns = Array.from({ length: n }, (_, i) => byStart.get(end - (n - 1 - i) * binS) ?? null);
  const inner = { width: width - MARGIN.left - MARGIN.right, height: HEIGHT - MARGIN.top - MARGIN.bottom };
  const step = inner.width / n;
  const mostJ = nice(Math.max(...columns.map((bin) => (bin ? spent(bin) : 0))));
  const mostW = nice(Math.max(...columns.map((bin) => bin?.power_w ?? 0)));
  last = { columns, n, step, end, binS };
  const x = (i) => MARGIN.left + i * step;
  const y = (share) => MARGIN.top + inner.height * (1 - share);

  const drawing = svg("svg", { width, height: HEIGHT, role: "img", tabindex: "0", "aria-label": summary(columns) });
  drawing.append(hatching());
  for (const share of [0, 0.5, 1]) {
    drawing.append(
      svg("line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: y(share), y2: y(share) }),
      text("axis", MARGIN.left - 8, y(share) + 4, joules(share * mostJ), "end"),
      text("axis power", width - MARGIN.right + 8, y(share) + 4, watts(share * mostW), "start"),
    );
  }
  for (const [i, anchor] of [[0, "start"], [Math.floor(n / 2), "middle"], [n, "end"]]) {
    drawing.append(text("axis", x(i), HEIGHT - 6, i === n ? "now" : clock(end - (n - i) * binS).slice(0, 5), anchor));
  }
  columns.forEach((bin, i) => {
    if (!bin) return;
    let below = 0;
    for (const [name, , qualities] of SERIES) {
      const share = qualities.reduce((sum, quality) => sum + (bin.joules[quality] ?? 0), 0) / mostJ;
      if (!share) continue;
      drawing.append(svg("rect", { class: `joules ${name}`, x: x(i) + step * 0.1, width: Math.max(step * 0.8, 1), y: y(below + share), height: inner.height * share }));
      below += share;
    }
    if (bin.n_unmeasured) drawing.append(svg("rect", { class: "unmeasured", x: x(i) + step * 0.1, width: Math.max(step * 0.8, 1), y: y(0) + 2, height: 3 }));
  });
  for (const run of powerRuns(columns)) {
    const points = run.map(([i, power]) => `${(x(i) + step / 2).toFixed(1)},${y(power / mostW).toFixed(1)}`);
    drawing.append(
      run.length > 1
        ? svg("polyline", { class: "power-line", points: points.join(" ") })
        : svg("circle", { class: "power-point", cx: x(run[0][0]) + step / 2, cy: y(run[0][1] / mostW), r: 2 }),
    );
  }
  drawing.append(svg("line", { class: "cursor", y1: MARGIN.top, y2: y(0), x1: 0, x2: 0 }));
  const focused = chart.contains(document.activeElement);
  chart.replaceChildren(drawing, legend(columns));
  if (focused) drawing.focus({ preventScroll: true });
  pick(hovered !== null && hovered < n ? hovered : null);
}

const spent = (bin) => Object.values(bin.joules).reduce((sum, value) => sum + value, 0);

// The next of 1, 2, 5 times a power of ten.
function nice(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].find((factor) => factor * power >= value) * power;
}

function text(cls, x, y, content, anchor) {
  return svg("text", { class: cls, x, y, "text-anchor": anchor }, content);
}

function hatching() {
  return svg(
    "defs",
    {},
    svg("pattern", { id: "hatch", width: 6, height: 6, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" }, svg("rect", { class: "hatch-ground", width: 6, height: 6 }), svg("rect", { class: "hatch-stroke", width: 2.5, height: 6 })),
  );
}

// Runs of known power: an unknown stretch is a gap, not a line at 0 W.
function powerRuns(columns) {
  const runs = [[]];
  columns.forEach((bin, i) => {
    if (typeof bin?.power_w === "number") runs.at(-1).push([i, bin.power_w]);
    else runs.push([]);
  });
  return runs.filter((run) => run.length);
}

function legend(columns) {
  const seen = columns.filter(Boolean);
  const series = SERIES.filter(([, , qualities]) => seen.some((bin) => qualities.some((quality) => bin.joules[quality] > 0)));
  const unknownHosts = Math.max(0, ...seen.map((bin) => bin.n_hosts_unknown));
  const simulated = seen.some((bin) => bin.simulated);
  return el(
    "p",
    { class: "legend" },
    series.map(([name, title]) => el("span", { class: `joules ${name}` }, `joules of requests, ${title}`)),
    seen.some((bin) => bin.n_unmeasured) ? el("span", { class: "unmeasured" }, "unmeasured requests") : null,
    seen.some((bin) => bin.power_w !== null)
      ? el("span", { class: "power-line" }, `fleet power${simulated ? ", simulated hosts included" : ""}${unknownHosts ? `, without ${unknownHosts} unmeasured` : ""}`)
      : el("span", { class: "note" }, "fleet power: unmeasured"),
  );
}

function summary(columns) {
  const seen = columns.filter(Boolean);
  const n = seen.reduce((sum, bin) => sum + bin.n_requests, 0);
  const unmeasured = seen.reduce((sum, bin) => sum + bin.n_unmeasured, 0);
  const total = seen.reduce((sum, bin) => sum + spent(bin), 0);
  return `Last ${minutes} minutes: ${n} requests, ${n - unmeasured ? joules(total) : UNMEASURED}, ${unmeasured} of them unmeasured. Arrow keys read single intervals.`;
}

function point(x) {
  if (!last) return;
  const i = Math.floor((x - MARGIN.left) / last.step);
  pick(i >= 0 && i < last.n ? i : null);
}

function pick(i) {
  hovered = i;
  const readout = byId("chart-readout");
  const cursor = byId("chart").querySelector(".cursor");
  if (i === null || !last) {
    readout.textContent = `Joules of requests by the ${digits(last?.binS ?? 10)} s in which they ended; point at the chart or use the arrow keys.`;
    readout.setAttribute("aria-live", "off");
    if (cursor) cursor.style.visibility = "hidden";
    return;
  }
  const x = MARGIN.left + (i + 0.5) * last.step;
  cursor.setAttribute("x1", x);
  cursor.setAttribute("x2", x);
  cursor.style.visibility = "visible";
  readout.setAttribute("aria-live", "polite");
  const bin = last.columns[i];
  const at = clock(last.end - (last.n - 1 - i) * last.binS);
  readout.textContent = bin ? `${at}: ${describe(bin)}` : `${at}: nothing was recorded`;
}

function describe(bin) {
  const parts = Object.entries(bin.joules).map(([quality, value]) => `${joules(value)} ${words(quality)}`);
  if (bin.n_unmeasured) parts.push(`${bin.n_unmeasured} unmeasured`);
  return `${bin.n_requests} requests${parts.length ? `, ${parts.join(", ")}` : ""}, ${bin.tokens} tokens, power ${watts(bin.power_w)}`;
}
