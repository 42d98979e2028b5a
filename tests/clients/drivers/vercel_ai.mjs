// Vercel's AI SDK, over OpenAI's two APIs and Anthropic's.
import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { embed, generateText, Output, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";
import { BASE, EMBEDDER, KEY, MODEL, QUESTION, TOO_LONG, need, report } from "./harness.mjs";

const openai = createOpenAI({ baseURL: BASE, apiKey: KEY });
const compatible = createOpenAICompatible({ name: "moe2", baseURL: BASE, apiKey: KEY, supportsStructuredOutputs: true });
const anthropic = createAnthropic({ baseURL: BASE, apiKey: KEY });
const models = { chat: openai.chat(MODEL), compatible: compatible(MODEL), responses: openai.responses(MODEL) };
const asked = { prompt: QUESTION, maxOutputTokens: 16, maxRetries: 0, temperature: 0 };

await report("ai", {
  chat: async () => {
    for (const model of [models.chat, models.compatible, anthropic(MODEL)]) {
      const { text } = await generateText({ model, ...asked });
      need(text, text);
    }
  },
  stream: async () => {
    for (const model of [models.compatible, models.responses, anthropic(MODEL)]) {
      let text = "";
      for await (const part of streamText({ model, ...asked }).textStream) text += part;
      need(text, text);
    }
  },
  tools: async () => {
    const weather = tool({
      description: "The weather.",
      inputSchema: z.object({ abroad: z.boolean() }),
      execute: async () => "sunny",
    });
    const more = { ...asked, maxOutputTokens: 90, tools: { weather } };
    for (const model of [models.compatible, models.responses, anthropic(MODEL)]) {
      const { toolCalls } = await generateText({ model, ...more, toolChoice: "required" });
      need("abroad" in toolCalls[0].input, toolCalls);
      await generateText({ model, ...more, stopWhen: stepCountIs(2) });
    }
  },
  structured: async () => {
    const output = Output.object({ schema: z.object({ ok: z.boolean() }) });
    for (const model of [models.compatible, models.responses]) {
      const found = await generateText({ model, ...asked, maxOutputTokens: 90, output });
      need(typeof found.output.ok === "boolean", found.output);
    }
  },
  responses: async () => {
    const first = await generateText({ model: models.responses, ...asked });
    const messages = [
      { role: "user", content: QUESTION }, ...first.response.messages, { role: "user", content: "Another one." },
    ];
    const { text } = await generateText({ model: models.responses, messages, maxOutputTokens: 16, maxRetries: 0 });
    need(text, text);
  },
  embeddings: async () => {
    const { embedding } = await embed({ model: openai.embedding(EMBEDDER), value: "a cat" });
    need(embedding.length === 576, embedding.length);
  },
  errors: async () => {
    const failed = await generateText({ model: models.compatible, prompt: TOO_LONG, maxRetries: 0 }).then(
      () => null, (error) => error,
    );
    need(failed?.statusCode === 400 && /context/.test(failed.message), failed);
  },
});
