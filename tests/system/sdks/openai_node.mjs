// The openai package on Node: chat completions and the Responses API.

import OpenAI from 'openai';
import { Pieces, SYSTEM, TURNS, errorOf, run } from './seen.mjs';

const pause = () => new Promise((go) => setTimeout(go, 50));

function clientOf(base, options) {
  const more = {};
  if (options.timeout) more.timeout = Number(options.timeout) * 1000;
  if (options.retries) more.maxRetries = Number(options.retries);
  return new OpenAI({ baseURL: base + (options.path ?? '/openai/v1'), apiKey: 'not-needed', ...more });
}

function usageOf(usage) {
  if (!usage) return null;
  return {
    input: usage.prompt_tokens,
    output: usage.completion_tokens,
    total: usage.total_tokens,
    cached: usage.prompt_tokens_details.cached_tokens,
    reasoning: usage.completion_tokens_details.reasoning_tokens,
  };
}

const asked = (options) => ({
  model: options.model ?? 'claude',
  messages: [{ role: 'user', content: options.prompt }],
});

function answered(found, seen) {
  const [choice] = found.choices;
  Object.assign(seen, {
    text: choice.message.content,
    role: choice.message.role,
    finish: choice.finish_reason,
    usage: usageOf(found.usage),
    id: found.id,
    model: found.model,
    object: found.object,
    created: found.created,
    tool_calls: choice.message.tool_calls ?? null,
  });
}

function responseUsage(usage) {
  if (!usage) return null;
  return {
    input: usage.input_tokens,
    output: usage.output_tokens,
    total: usage.total_tokens,
    cached: usage.input_tokens_details.cached_tokens,
    reasoning: usage.output_tokens_details.reasoning_tokens,
  };
}

function responded(found, seen) {
  Object.assign(seen, {
    id: found.id,
    object: found.object,
    status: found.status,
    text: found.output_text,
    usage: responseUsage(found.usage),
    model: found.model,
    kinds: found.output.map((item) => item.type),
    previous: found.previous_response_id ?? null,
  });
}

await run({
  async models(base, options, seen) {
    const client = clientOf(base, options);
    seen.models = [];
    for await (const model of client.models.list()) seen.models.push(model);
    seen.one = await client.models.retrieve('claude');
    try {
      await client.models.retrieve('no/such');
    } catch (error) {
      seen.missing = errorOf(error);
    }
  },

  async answer(base, options, seen) {
    answered(await clientOf(base, options).chat.completions.create(asked(options)), seen);
  },

  async history(base, options, seen) {
    const last = { role: 'user', content: [{ type: 'text', text: options.prompt }] };
    const messages = [{ role: 'developer', content: SYSTEM }, ...TURNS, last];
    answered(await clientOf(base, options).chat.completions.create({ model: 'claude', messages }), seen);
  },

  async stream(base, options, seen) {
    const pieces = new Pieces(seen);
    Object.assign(seen, { finishes: [], roles: [] });
    const ids = new Set();
    const more = { stream: true, stream_options: { include_usage: true } };
    for await (const chunk of await clientOf(base, options).chat.completions.create({ ...asked(options), ...more })) {
      ids.add([chunk.id, chunk.created, chunk.model, chunk.object].join());
      for (const choice of chunk.choices) {
        if (choice.delta.role) seen.roles.push(choice.delta.role);
        if (choice.delta.content) pieces.add(choice.delta.content);
        if (choice.finish_reason) seen.finishes.push(choice.finish_reason);
      }
      if (chunk.usage) seen.usage = usageOf(chunk.usage);
    }
    seen.ids = ids.size;
  },

  // As everybody writes it: `chunk.choices[0]` of every chunk, usage not asked for.
  async plain(base, options, seen) {
    const pieces = new Pieces(seen);
    for await (const chunk of await clientOf(base, options).chat.completions.create({ ...asked(options), stream: true })) {
      pieces.add(chunk.choices[0].delta.content ?? '');
      seen.usage = chunk.usage ?? null;
    }
  },

  // The SDK's own accumulator, which is stricter than its iterator.
  async helper(base, options, seen) {
    const pieces = new Pieces(seen);
    const more = { stream_options: { include_usage: true } };
    const events = clientOf(base, options).chat.completions.stream({ ...asked(options), ...more });
    events.on('content', (delta) => pieces.add(delta));
    const whole = await events.finalChatCompletion();
    const heard = seen.text;
    answered(whole, seen);
    seen.same = heard === seen.text;
  },

  async hangup(base, options, seen) {
    for await (const chunk of await clientOf(base, options).chat.completions.create({ ...asked(options), stream: true })) {
      if (chunk.choices[0].delta.content) {
        seen.text = chunk.choices[0].delta.content;
        break;
      }
    }
  },

  async refused(base, options) {
    const tools = [{ type: 'function', function: { name: 'clock', parameters: { type: 'object', properties: {} } } }];
    await clientOf(base, options).chat.completions.create({ ...asked(options), tools, tool_choice: 'required' });
  },

  async respond(base, options, seen) {
    responded(await clientOf(base, options).responses.create({ model: 'claude', input: options.prompt }), seen);
  },

  async respond_retrieve(base, options, seen) {
    const client = clientOf(base, options);
    const made = await client.responses.create({ model: 'claude', input: options.prompt, metadata: { team: 'x' } });
    const found = await client.responses.retrieve(made.id);
    responded(found, seen);
    seen.same = made.output_text === found.output_text;
    seen.metadata = found.metadata;
  },

  async respond_stream(base, options, seen) {
    const pieces = new Pieces(seen);
    seen.events = [];
    const numbers = [];
    const events = await clientOf(base, options).responses.create({ model: 'claude', input: options.prompt, stream: true });
    for await (const event of events) {
      numbers.push(event.sequence_number);
      if (seen.events.at(-1) !== event.type) seen.events.push(event.type);
      if (event.type === 'response.output_text.delta') pieces.add(event.delta);
      else if (event.type === 'response.completed' || event.type === 'response.failed') {
        seen.usage = responseUsage(event.response.usage);
        const texts = event.response.output.flatMap((item) => item.content ?? []).filter((part) => part.type === 'output_text');
        seen.final = texts.map((part) => part.text).join('');
        seen.status = event.response.status;
        seen.failure = event.response.error;
      } else if (event.type === 'error') seen.failure = event;
    }
    seen.numbered = numbers.every((number, at) => number === numbers[0] + at);
    seen.first_number = numbers[0];
  },

  async respond_helper(base, options, seen) {
    let heard = '';
    const events = clientOf(base, options).responses.stream({ model: 'claude', input: options.prompt });
    events.on('response.output_text.delta', (event) => (heard += event.delta));
    responded(await events.finalResponse(), seen);
    seen.same = heard === seen.text;
  },

  async respond_background(base, options, seen) {
    const client = clientOf(base, options);
    let found = await client.responses.create({ model: 'claude', input: options.prompt, background: true });
    seen.first_status = found.status;
    for (seen.polls = 0; found.status === 'queued' || found.status === 'in_progress'; seen.polls += 1) {
      await pause();
      found = await client.responses.retrieve(found.id);
    }
    responded(found, seen);
  },

  // Loses the stream of a background response after three pieces of text and takes it up where it was.
  async respond_resume(base, options, seen) {
    const client = clientOf(base, options);
    const wish = { model: 'claude', input: options.prompt, background: true, stream: true };
    let [text, after, id] = ['', null, ''];
    for await (const event of await client.responses.create(wish)) {
      after = event.sequence_number;
      if (event.type === 'response.created') id = event.response.id;
      if (event.type === 'response.output_text.delta') text += event.delta;
      if (text.split(' ').length > 3) break;
    }
    seen.before = text;
    seen.events = [];
    for await (const event of await client.responses.retrieve(id, { stream: true, starting_after: after })) {
      seen.events.push(event.type);
      if (event.type === 'response.output_text.delta') text += event.delta;
    }
    seen.text = text;
  },

  async respond_cancel(base, options, seen) {
    const client = clientOf(base, options);
    const made = await client.responses.create({ model: 'claude', input: options.prompt, background: true });
    seen.cancelled = (await client.responses.cancel(made.id)).status;
    let found = made;
    while (found.status === 'queued' || found.status === 'in_progress') {
      await pause();
      found = await client.responses.retrieve(made.id);
    }
    seen.status = found.status;
    seen.again = (await client.responses.cancel(made.id)).status;
  },

  async respond_delete(base, options) {
    const client = clientOf(base, options);
    const made = await client.responses.create({ model: 'claude', input: options.prompt });
    await client.responses.delete(made.id);
    await client.responses.retrieve(made.id);
  },

  async respond_previous(base, options, seen) {
    const client = clientOf(base, options);
    const first = await client.responses.create({
      model: 'claude',
      input: 'My name is Ada. [[fake:say n=2]]',
      instructions: SYSTEM,
    });
    const wish = { model: 'claude', input: options.prompt, previous_response_id: first.id };
    responded(await client.responses.create(wish), seen);
    seen.expected_previous = first.id;
  },

  async respond_history(base, options, seen) {
    const input = [...TURNS, { role: 'user', content: [{ type: 'input_text', text: options.prompt }] }];
    const wish = { model: 'claude', input, instructions: SYSTEM, store: false };
    responded(await clientOf(base, options).responses.create(wish), seen);
  },
});
