"""Stands in for `claude -p` with stream-json in and out. Words in the prompt say what it does:

    [[fake:say n=8 ms=0]]      n tokens, ms apart; also without any word
    [[fake:think k=3 n=4]]     k thoughts before the tokens
    [[fake:seen]]              the system prompt, the turns and the prompt that it got, as JSON
    [[fake:echo]]              the prompt itself
    [[fake:long bytes=200000]] a text of every awkward kind of character
    [[fake:fail status=429]]   the vendor's refusal, before any token
    [[fake:limited key=a]]     the same, but only the first time that it is asked with this key
    [[fake:late n=3]]          n tokens, then the vendor's error
    [[fake:die n=3]]           n tokens, then it is gone, without a last word
    [[fake:hang]]              one token, and never an end

Asked for an answer of a schema it gives one.

Needs nothing but the standard library: it is started as a child of the worker.
"""

import itertools
import json
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SESSION = "00000000-0000-4000-8000-000000000000"
MODEL = "claude-opus-5-5"
MESSAGE = "msg_fake"
INPUT = {"input_tokens": 157, "cache_creation_input_tokens": 3, "cache_read_input_tokens": 7}
SAID = {401: "Invalid API key · Fix external API key", 429: "API Error: Request rejected (429) · Rate limited (fake)"}
KINDS = {401: "authentication_failed", 429: "rate_limit"}

_AWKWARD = (
    'plain text with "quotes" and \\ backslashes, ',
    "漢字 かな 한글 ",
    "👩‍👩‍👧‍👦 🪐 🇨🇳 é é ",
    "שלום עולם \u202bمرحبا بالعالم\u202c ",
    "\ttab\r\nline\n\nblank\x0bvertical\x0cfeed ",
    "\x01\x02\x1b[31mred\x1b[0m\x7f\u0085 ",
    "\u2028line separator\u2029paragraph separator\ufeffmark ",
    'data: {"error": 1}\n\nevent: error\n\n: comment\n[DONE] ',
)


def long_text(size: int) -> str:
    """At least `size` bytes of UTF-8, the same each time, with all that a careless relay breaks; no NUL."""
    pieces = (f"{number:06d} {piece}" for number, piece in enumerate(itertools.cycle(_AWKWARD)))
    found, have = [], 0
    while have < size:
        piece = next(pieces)
        found.append(piece)
        have += len(piece.encode())
    return "".join(found)


def tokens(count: int) -> list[str]:
    return [f"tok{number} " for number in range(count)]


def say(kind: str, **fields: object) -> None:
    line = json.dumps({"type": kind, **fields, "session_id": SESSION}, ensure_ascii=False)
    sys.stdout.buffer.write(line.encode() + b"\n")
    sys.stdout.buffer.flush()


def event(kind: str, **fields: object) -> None:
    say("stream_event", event={"type": kind, **fields}, parent_tool_use_id=None)


def block(number: int, kind: str, pieces: Iterator[str] | list[str], pause_s: float) -> str:
    field = "thinking" if kind == "thinking" else "text"
    event("content_block_start", index=number, content_block={"type": kind, field: ""})
    whole = []
    for piece in pieces:
        if whole:
            time.sleep(pause_s)
        whole.append(piece)
        event("content_block_delta", index=number, delta={"type": f"{field}_delta", field: piece})
    if kind == "thinking":
        event("content_block_delta", index=number, delta={"type": "signature_delta", "signature": "ZmFrZQ=="})
    say("assistant", message={"id": MESSAGE, "model": MODEL, "content": [{"type": kind, field: "".join(whole)}]})
    event("content_block_stop", index=number)
    return "".join(whole)


def begin() -> None:
    event("message_start", message={"id": MESSAGE, "role": "assistant", "model": MODEL, "content": [], "usage": INPUT})


def end(text: str, count: int, thoughts: int = 0, value: Any = None) -> None:
    usage = {**INPUT, "output_tokens": count + thoughts}
    event("message_delta", delta={"stop_reason": "end_turn", "stop_sequence": None}, usage=usage)
    event("message_stop")
    usage["output_tokens_details"] = {"thinking_tokens": thoughts}
    more = {"total_cost_usd": 0.001} if value is None else {"structured_output": value}
    say("result", subtype="success", is_error=False, num_turns=1, result=text, usage=usage, **more)


def fail(status: int) -> None:
    said = SAID.get(status, f"API Error: {status} vendor trouble (fake)")
    retry = {"attempt": 1, "max_retries": 2, "retry_delay_ms": 1000, "error_status": status}
    say("system", subtype="api_retry", error=KINDS.get(status, "server_error"), **retry)
    words = [{"type": "text", "text": said}]
    say("assistant", message={"id": "synthetic", "model": "<synthetic>", "content": words})
    say("result", subtype="success", is_error=True, num_turns=1, api_error_status=status, result=said, usage=INPUT)
    sys.exit(1)


def answer(pieces: list[str], pause_s: float = 0.0, thoughts: int = 0) -> None:
    begin()
    if thoughts:
        block(0, "thinking", (f"thought{number} " for number in range(thoughts)), pause_s)
    text = block(1 if thoughts else 0, "text", pieces, pause_s)
    end(text, len(pieces), thoughts)


def value_of(schema: dict[str, Any]) -> Any:
    """Some value of the schema."""
    match schema.get("type"):
        case "object":
            return {name: value_of(kind) for name, kind in schema.get("properties", {}).items()}
        case "array":
            return [value_of(schema.get("items", {}))]
        case "integer" | "number":
            return 7
        case "boolean":
            return True
        case _:
            return (schema.get("enum") or ["Kraków"])[0]


def answer_value(schema: dict[str, Any]) -> None:
    """Its way to an answer of a schema: a tool of its own, after words that are no part of the answer."""
    begin()
    said = block(0, "text", ["let me see "], 0.0)
    value = value_of(schema)
    use = {"type": "tool_use", "id": "toolu_value", "name": "StructuredOutput", "input": value}
    say("assistant", message={"id": MESSAGE, "model": MODEL, "content": [use]})
    done = {"type": "tool_result", "tool_use_id": "toolu_value", "content": "Structured output provided successfully"}
    say("user", message={"role": "user", "content": [done]})
    end(said, 8, value=value)


def flat(content: object) -> str:
    """Text as it is; of an attachment its kind and size."""
    if isinstance(content, str):
        return content
    found = []
    for part in content if isinstance(content, list) else []:
        source = part.get("source") or {}
        shown = f"[{part['type']} {source.get('media_type')} {len(source.get('data') or '')}]"
        found.append(part["text"] if part["type"] == "text" else shown)
    return "".join(found)


def turns_of(session: str) -> list[dict[str, str]]:
    """The conversation that `--resume` goes on with: a file, or an id that lies where the real CLI keeps its own."""
    home = Path(os.environ.get("CLAUDE_CONFIG_DIR") or Path(os.environ["HOME"]) / ".claude")
    for path in [Path(session)] if session.endswith(".jsonl") else home.glob(f"projects/*/{session}.jsonl"):
        entries = [json.loads(line) for line in path.read_text().split("\n") if line.strip()]
        spoken = [e["message"] for e in entries if e.get("type") in ("user", "assistant")]
        return [{"role": m["role"], "text": flat(m["content"])} for m in spoken]
    sys.stderr.write(f"No conversation found with session ID: {session}\n")
    sys.exit(1)


def main(argv: list[str]) -> None:
    lines = [json.loads(line) for line in sys.stdin.buffer.read().splitlines() if line.strip()]
    asked = next((line["request"] for line in lines if line["type"] == "control_request"), {})
    messages = [line["message"] for line in lines if line["type"] == "user"]
    prompt = flat(messages[-1]["content"])
    turns = turns_of(argv[argv.index("--resume") + 1]) if "--resume" in argv else []
    turns += [{"role": m["role"], "text": flat(m["content"])} for m in messages[:-1]]
    found = re.search(r"\[\[fake:(\w+)((?: \w+=[\w-]+)*)\]\]", prompt)
    verb = found[1] if found else "say"
    given = dict(word.split("=") for word in found[2].split()) if found else {}
    count, pause_s = int(given.get("n", 8)), int(given.get("ms", 0)) / 1000
    say("system", subtype="init", model=MODEL, tools=[], permissionMode="default")
    if schema := asked.get("jsonSchema"):
        answer_value(schema)
        return
    match verb:
        case "think":
            answer(tokens(count), pause_s, int(given.get("k", 3)))
        case "seen":
            system = "".join(asked.get("systemPrompt") or []) or asked.get("appendSystemPrompt") or ""
            seen = {"system": system, "turns": turns, "prompt": prompt, "argv": argv}
            answer([json.dumps(seen, ensure_ascii=False)])
        case "echo":
            answer([prompt])
        case "long":
            text = long_text(int(given.get("bytes", 200_000)))
            answer([text[at : at + 499] for at in range(0, len(text), 499)])
        case "fail":
            fail(int(given.get("status", 500)))
        case "limited":
            mark = Path(os.environ["HOME"]) / f".fake-claude-{given['key']}"
            if not mark.exists():
                mark.touch()
                fail(429)
            answer(tokens(count), pause_s)
        case "late":
            begin()
            block(0, "text", tokens(count), pause_s)
            fail(500)
        case "die":
            begin()
            block(0, "text", tokens(count), pause_s)
            sys.stderr.write("fake: out of memory\n")
            sys.exit(3)
        case "hang":
            begin()
            event("content_block_delta", index=0, delta={"type": "text_delta", "text": "tok0 "})
            signal.pause()
        case _:
            answer(tokens(count), pause_s)


if __name__ == "__main__":
    main(sys.argv[1:])
