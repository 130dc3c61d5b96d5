// @anthropic-ai/sdk on Node.

import Anthropic from '@anthropic-ai/sdk';
import { Pieces, SYSTEM, TURNS, errorOf, run } from './seen.mjs';

function clientOf(base, options) {
  const more = {};
  if (options.timeout) more.timeout = Number(options.timeout) * 1000;
  if (options.retries) more.maxRetries = Number(options.retries);
  return new Anthropic({ baseURL: base + (options.path ?? '/anthropic'), apiKey: 'not-needed', ...more });
}

const usageOf = (usage) => ({
  input: usage.input_tokens,
  output: usage.output_tokens,
  cached: usage.cache_read_input_tokens,
});

const asked = (options) => ({
  model: options.model ?? 'claude',
  max_tokens: 2048,
  messages: [{ role: 'user', content: options.prompt }],
  ...(options.thinking ? { thinking: { type: 'enabled', budget_tokens: 1024 } } : {}),
});

function answered(found, seen) {
  const all = (kind) => found.content.filter((block) => block.type === kind);
  Object.assign(seen, {
    text: all('text').map((block) => block.text).join(''),
    thinking: all('thinking').map((block) => block.thinking).join(''),
    kinds: found.content.map((block) => block.type),
    role: found.role,
    finish: found.stop_reason,
    usage: usageOf(found.usage),
    id: found.id,
    model: found.model,
    object: found.type,
  });
}

await run({
  async models(base, options, seen) {
    const client = clientOf(base, options);
    seen.models = [];
    for await (const model of client.models.list()) seen.models.push(model);
    seen.one = await client.models.retrieve('claude');
    try {
      await client.models.retrieve('no-such');
    } catch (error) {
      seen.missing = errorOf(error);
    }
  },

  async answer(base, options, seen) {
    answered(await clientOf(base, options).messages.create(asked(options)), seen);
  },

  async history(base, options, seen) {
    const last = { role: 'user', content: [{ type: 'text', text: options.prompt }] };
    const wish = { model: 'claude', max_tokens: 1024, system: SYSTEM, messages: [...TURNS, last] };
    answered(await clientOf(base, options).messages.create(wish), seen);
  },

  // The raw events, as the wire has them.
  async stream(base, options, seen) {
    const pieces = new Pieces(seen);
    seen.events = [];
    for await (const event of await clientOf(base, options).messages.create({ ...asked(options), stream: true })) {
      if (seen.events.at(-1) !== event.type) seen.events.push(event.type);
      if (event.type === 'message_start') {
        seen.first_usage = usageOf(event.message.usage);
        seen.id = event.message.id;
        seen.role = event.message.role;
      } else if (event.type === 'content_block_delta') {
        if (event.delta.type === 'text_delta') pieces.add(event.delta.text);
        if (event.delta.type === 'thinking_delta') pieces.add(event.delta.thinking, 'thinking');
      } else if (event.type === 'message_delta') {
        seen.finish = event.delta.stop_reason;
        seen.usage = usageOf(event.usage);
      }
    }
  },

  // The SDK's own accumulator, which is stricter than its iterator.
  async helper(base, options, seen) {
    const pieces = new Pieces(seen);
    const events = clientOf(base, options).messages.stream(asked(options));
    events.on('text', (delta) => pieces.add(delta));
    const whole = await events.finalMessage();
    const heard = seen.text;
    answered(whole, seen);
    seen.same = heard === seen.text;
  },

  async hangup(base, options, seen) {
    for await (const event of await clientOf(base, options).messages.create({ ...asked(options), stream: true })) {
      if (event.type === 'content_block_delta') {
        seen.text = event.delta.text;
        break;
      }
    }
  },

  async refused(base, options) {
    const tools = [{ name: 'clock', input_schema: { type: 'object', properties: {} } }];
    await clientOf(base, options).messages.create({ ...asked(options), tools, tool_choice: { type: 'any' } });
  },

  // Thoughts are blocks of their own, and may be sent back.
  async thinking(base, options, seen) {
    const client = clientOf(base, options);
    const wish = { model: 'claude', max_tokens: 2048, thinking: { type: 'enabled', budget_tokens: 1024 } };
    const question = { role: 'user', content: options.prompt };
    const found = await client.messages.create({ ...wish, messages: [question] });
    answered(found, seen);
    seen.signed = found.content.filter((block) => block.type === 'thinking').map((block) => Boolean(block.signature));
    const messages = [question, { role: 'assistant', content: found.content }, { role: 'user', content: '[[fake:seen]]' }];
    seen.next = (await client.messages.create({ ...wish, messages })).content.at(-1).text;
  },

  async count(base, options, seen) {
    const client = clientOf(base, options);
    const short = [{ role: 'user', content: 'Hello' }];
    seen.short = (await client.messages.countTokens({ model: 'claude', messages: short })).input_tokens;
    const long = [{ role: 'user', content: 'Hello '.repeat(1000) }];
    seen.long = (await client.messages.countTokens({ model: 'claude', messages: long, system: SYSTEM })).input_tokens;
  },
});
