// Numbers for people. Unknown is "unmeasured" or a dash, never 0.

export const UNMEASURED = "unmeasured";
export const DASH = "–";
const known = (value) => typeof value === "number" && Number.isFinite(value);

export function digits(value) {
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size >= 1000) return Math.round(value).toLocaleString("en");
  return String(Number(value.toPrecision(size >= 100 ? 3 : size >= 1 ? 3 : 2)));
}

export function joules(value) {
  if (!known(value)) return UNMEASURED;
  if (value !== 0 && Math.abs(value) < 0.1) return `${digits(value * 1000)} mJ`;
  return Math.abs(value) >= 10_000 ? `${digits(value / 1000)} kJ` : `${digits(value)} J`;
}

export function watts(value) {
  if (!known(value)) return UNMEASURED;
  return Math.abs(value) >= 10_000 ? `${digits(value / 1000)} kW` : `${digits(value)} W`;
}

// What a joule has to bring: points are hundredths of a score, and a single joule is mostly worth too few of them to read.
export function points(pricePerJ) {
  if (!known(pricePerJ)) return DASH;
  return pricePerJ >= 0.01 ? `${digits(pricePerJ * 100)} points/J` : `${digits(pricePerJ * 1e5)} points/kJ`;
}
export const perToken = (value) => (known(value) ? `${joules(value)}/token` : UNMEASURED);
export const rate = (value) => (known(value) ? `${digits(value)} tok/s` : UNMEASURED);
export const count = (value) => (known(value) ? Math.round(value).toLocaleString("en") : DASH);

export function seconds(value) {
  if (!known(value)) return DASH;
  if (Math.abs(value) < 0.001) return `${digits(value * 1e6)} µs`;
  if (Math.abs(value) < 1) return `${digits(value * 1000)} ms`;
  if (value < 120) return `${digits(value)} s`;
  return duration(value);
}

export function duration(value) {
  if (!known(value)) return DASH;
  const units = [[86_400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
  for (const [size, name] of units) if (value >= size) return `${Math.floor(value / size)} ${name}`;
  return "0 s";
}

export function bytes(value) {
  if (!known(value)) return DASH;
  return value >= 1e9 ? `${digits(value / 1e9)} GB` : `${digits(value / 1e6)} MB`;
}

export function parameters(value) {
  if (!known(value)) return null;
  return value >= 1e9 ? `${digits(value / 1e9)}B` : `${digits(value / 1e6)}M`;
}

export const clock = (unixSeconds) =>
  new Date(unixSeconds * 1000).toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });

export const words = (code) => String(code).replaceAll("_", " ");

export function median(values) {
  const sorted = values.filter(known).sort((a, b) => a - b);
  if (!sorted.length) return null;
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}
