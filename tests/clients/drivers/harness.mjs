// What every JavaScript driver has in common: where the fleet is, and how results are told.
import { readFileSync } from "node:fs";
import { join } from "node:path";

export const URL = process.env.MOE2_URL;
export const BASE = `${URL}/v1`;
export const KEY = "unused";
export const MODEL = "smollm2";
export const EMBEDDER = "minilm";
export const QUESTION = "Name a colour.";
export const TOO_LONG = "word ".repeat(6000);

export function need(condition, what) {
  if (!condition) throw new Error(`found ${JSON.stringify(what)}`);
}

export async function report(name, checks) {
  const results = {};
  for (const [check, run] of Object.entries(checks)) {
    try {
      await run();
      results[check] = "ok";
    } catch (error) {
      console.error(error);
      results[check] = `${error.name}: ${error.message}`.slice(0, 500);
    }
  }
  const manifest = join(process.env.NODE_MODULES, name, "package.json");
  const { version } = JSON.parse(readFileSync(manifest, "utf8"));
  console.log(JSON.stringify({ version, results }));
}
