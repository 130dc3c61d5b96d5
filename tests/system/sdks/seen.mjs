// What a client program saw, as one JSON object on stdout. Shared by the Node programs.
//
//     node <program> <scenario> <base URL> [name=value ...]
//
// Without arguments it takes one scenario after the other, each as a JSON array on a line of stdin.

import { createInterface } from 'node:readline';

const requests = [];

export const fetched = globalThis.fetch;

globalThis.fetch = async (input, init) => {
  const url = new URL(typeof input === 'string' ? input : (input.url ?? String(input)));
  const note = { method: init?.method ?? input.method ?? 'GET', path: url.pathname, status: null };
  requests.push(note);
  const response = await fetched(input, init);
  note.status = response.status;
  note.run = response.headers.get('x-run-id');
  return response;
};

export function errorOf(error) {
  const kinds = [];
  for (let at = error?.constructor; at && at.name; at = Object.getPrototypeOf(at)) kinds.push(at.name);
  const headers = error?.headers;
  const header = (name) => (headers?.get ? headers.get(name) : (error?.responseHeaders?.[name] ?? null));
  return {
    kind: error?.constructor?.name ?? typeof error,
    kinds,
    name: error?.name,
    status: error?.status ?? error?.statusCode ?? null,
    message: String(error?.message ?? (error instanceof Error ? error : JSON.stringify(error))),
    code: error?.code ?? null,
    param: error?.param ?? null,
    type: error?.type ?? error?.error?.error?.type ?? null,
    retry_after: header('retry-after'),
    should_retry: header('x-should-retry'),
    request_id: error?.requestID ?? null,
    cause: error?.cause ? errorOf(error.cause) : undefined,
    last: error?.lastError ? errorOf(error.lastError) : undefined,
  };
}

export class Pieces {
  constructor(seen) {
    this.seen = seen;
    this.begun = performance.now();
    Object.assign(seen, { text: '', thinking: '', chunks: 0, first_s: null, last_s: null });
  }

  add(text, field = 'text') {
    this.seen.last_s = (performance.now() - this.begun) / 1000;
    this.seen.first_s ??= this.seen.last_s;
    this.seen[field] += text;
    this.seen.chunks += 1;
  }
}

async function seenOf(scenarios, [name, base, ...words]) {
  const options = Object.fromEntries(words.map((word) => [word.slice(0, word.indexOf('=')), word.slice(word.indexOf('=') + 1)]));
  const seen = {};
  requests.length = 0;
  const begun = performance.now();
  try {
    await scenarios[name](base, options, seen);
  } catch (error) {
    seen.error = errorOf(error);
  }
  seen.took_s = (performance.now() - begun) / 1000;
  seen.requests = requests;
  process.stdout.write(JSON.stringify(seen) + '\n');
}

export async function run(scenarios) {
  if (process.argv.length > 2) return seenOf(scenarios, process.argv.slice(2));
  for await (const line of createInterface({ input: process.stdin })) await seenOf(scenarios, JSON.parse(line));
}

export const SYSTEM = 'You are a TEAPOT.';
export const TURNS = [
  { role: 'user', content: 'My name is Ada.' },
  { role: 'assistant', content: 'Hello Ada.' },
  { role: 'user', content: 'And I live in Kraków.' },
  { role: 'assistant', content: 'A fine town.' },
];
