// OpenAI's own SDK for JavaScript.
import OpenAI from "openai";
import { zodFunction, zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";
import { BASE, EMBEDDER, KEY, MODEL, QUESTION, TOO_LONG, need, report } from "./harness.mjs";

const client = new OpenAI({ baseURL: BASE, apiKey: KEY, maxRetries: 0 });
const messages = [{ role: "user", content: QUESTION }];
const Verdict = z.object({ ok: z.boolean() });

await report("openai", {
  chat: async () => {
    const answer = await client.chat.completions.create({ model: MODEL, messages, max_tokens: 8 });
    need(answer.choices[0].message.content, answer);
  },
  stream: async () => {
    const stream = client.chat.completions.stream({ model: MODEL, messages, max_tokens: 8 });
    const final = await stream.finalChatCompletion();
    need(final.choices[0].message.content, final);
  },
  tools: async () => {
    const tools = [zodFunction({ name: "weather", parameters: z.object({ abroad: z.boolean() }) })];
    const answer = await client.chat.completions.parse({
      model: MODEL, messages, tools, tool_choice: "required", max_tokens: 200, temperature: 0,
    });
    need("abroad" in answer.choices[0].message.tool_calls[0].function.parsed_arguments, answer);
    await client.chat.completions.create({ model: MODEL, messages, tools, max_tokens: 16 });
  },
  structured: async () => {
    const response_format = zodResponseFormat(Verdict, "verdict");
    const answer = await client.chat.completions.parse({ model: MODEL, messages, response_format, max_tokens: 200, temperature: 0 });
    need(typeof answer.choices[0].message.parsed.ok === "boolean", answer);
  },
  responses: async () => {
    const text = { format: zodTextFormat(Verdict, "verdict") };
    const stream = client.responses.stream({ model: MODEL, input: QUESTION, text, max_output_tokens: 200, temperature: 0 });
    const final = await stream.finalResponse();
    need(typeof final.output_parsed.ok === "boolean", final);
  },
  embeddings: async () => {
    const answer = await client.embeddings.create({ model: EMBEDDER, input: "a cat" });
    need(answer.data[0].embedding.length === 576, answer.usage);
  },
  errors: async () => {
    const content = TOO_LONG;
    const failed = await client.chat.completions
      .create({ model: MODEL, messages: [{ role: "user", content }] })
      .then(() => null, (error) => error);
    need(failed instanceof OpenAI.BadRequestError && failed.code === "context_length_exceeded", failed);
  },
});
