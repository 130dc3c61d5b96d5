// The Vercel AI SDK with its three providers: provider=openai (Responses API, its default), chat, compatible, anthropic.

import { createAnthropic } from '@ai-sdk/anthropic';
import { createOpenAI } from '@ai-sdk/openai';
import { createOpenAICompatible } from '@ai-sdk/openai-compatible';
import { generateText, streamText } from 'ai';
import { Pieces, SYSTEM, TURNS, run } from './seen.mjs';

globalThis.AI_SDK_LOG_WARNINGS = false;

function modelOf(base, options) {
  const name = options.model ?? 'claude';
  const apiKey = 'not-needed';
  switch (options.provider) {
    case 'openai':
      return createOpenAI({ baseURL: `${base}/openai/v1`, apiKey })(name);
    case 'chat':
      return createOpenAI({ baseURL: `${base}/openai/v1`, apiKey }).chat(name);
    case 'compatible':
      return createOpenAICompatible({
        name: 'clinvk',
        baseURL: `${base}/openai/v1`,
        apiKey,
        includeUsage: true,
        supportsStructuredOutputs: true,
      })(name);
    default:
      return createAnthropic({ baseURL: `${base}/anthropic/v1`, apiKey })(name);
  }
}

function asked(base, options) {
  const more = {};
  if (options.timeout) more.abortSignal = AbortSignal.timeout(Number(options.timeout) * 1000);
  if (options.retries) more.maxRetries = Number(options.retries);
  return { model: modelOf(base, options), prompt: options.prompt, ...more };
}

const usageOf = (usage) => ({
  input: usage.inputTokens,
  output: usage.outputTokens,
  cached: usage.cachedInputTokens ?? usage.inputTokenDetails?.cacheReadTokens,
});

function answered(found, seen) {
  Object.assign(seen, { text: found.text, finish: found.finishReason, usage: usageOf(found.usage), thinking: found.reasoningText });
}

await run({
  async answer(base, options, seen) {
    answered(await generateText(asked(base, options)), seen);
  },

  async history(base, options, seen) {
    const { prompt, ...rest } = asked(base, options);
    answered(await generateText({ ...rest, system: SYSTEM, messages: [...TURNS, { role: 'user', content: prompt }] }), seen);
  },

  async stream(base, options, seen) {
    const pieces = new Pieces(seen);
    let failed;
    const found = streamText({ ...asked(base, options), onError: ({ error }) => (failed = error) });
    for await (const text of found.textStream) pieces.add(text);
    if (failed) throw failed;
    seen.finish = await found.finishReason;
    seen.usage = usageOf(await found.usage);
    seen.thinking = await found.reasoningText;
  },

  async hangup(base, options, seen) {
    const stop = new AbortController();
    const found = streamText({ ...asked(base, options), abortSignal: stop.signal, onError: () => {} });
    for await (const text of found.textStream) {
      seen.text = text;
      stop.abort();
      break;
    }
  },

  async schema(base, options, seen) {
    const { generateObject, jsonSchema } = await import('ai');
    const properties = { name: { type: 'string' }, population: { type: 'integer' } };
    const city = { type: 'object', properties, required: ['name', 'population'], additionalProperties: false };
    const providerOptions = { anthropic: { structuredOutputMode: 'outputFormat' } };
    const found = await generateObject({ ...asked(base, options), schema: jsonSchema(city), providerOptions });
    seen.text = found.object.name;
  },

  async refused(base, options) {
    const { jsonSchema, tool } = await import('ai');
    const tools = { clock: tool({ inputSchema: jsonSchema({ type: 'object', properties: {} }) }) };
    await generateText({ ...asked(base, options), tools, toolChoice: 'required' });
  },
});
