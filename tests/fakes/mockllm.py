"""The model APIs of the three vendors on loopback, scripted by the prompt, for driving the real CLIs.

A directive `[[mock:KIND key=value …]]` in the last user text that has one says what to answer:

  text    n pieces (5) with ms between them (0); size: bytes of each; as the default when there is no directive
  think   three thoughts, then text; parts: of a summary that openai makes of them (1)
  tool    one shell command (cmd, with + for blanks), and when its result is there, text
  call    any other tool (tool), with what else stands there as its arguments; of gemini alone
  status  code=401|404|429|500 …
  drop    three pieces, then the connection is cut
  eof     three pieces, then the body ends without the vendor's final event
  hang    never answers
  json    some words, then the value {"a":"b"} as the whole of an answer (value=... without blanks): through the tool
          StructuredOutput where that is offered
  seen    one text: JSON of what the model was sent (roles, sha256 and length of the last user text, system prompt)

Only what the CLIs read of each vendor's stream is there. Standard library alone.
"""

import asyncio
import contextlib
import hashlib
import json
import random
import re
import ssl
import threading
from typing import Any

_DIRECTIVE = re.compile(r"\[\[mock:(\w+)([^\]]*)\]\]")


class Request:
    """What a CLI asked of its vendor, in one form for all three."""

    def __init__(self, path: str, body: dict[str, Any]) -> None:
        self.path = path
        self.body = body
        if path.endswith("/messages"):
            self.api, items = "anthropic", body.get("messages", [])
            self.system = _texts(body.get("system"))
        elif path.endswith("/responses"):
            self.api, items = "openai", body.get("input", [])
            self.system = str(body.get("instructions") or "")
        else:
            self.api, items = "gemini", body.get("contents", [])
            self.system = _texts((body.get("systemInstruction") or {}).get("parts"))
        self.turns = [(str(i.get("role", "")), _texts(i.get("content") or i.get("parts"))) for i in items]
        users = [text for role, text in self.turns if role == "user"]
        found = next((m for text in reversed(users) for m in reversed(list(_DIRECTIVE.finditer(text)))), None)
        self.kind = found.group(1) if found else "text"
        self.args = dict(w.partition("=")[::2] for w in found.group(2).split()) if found else {}
        self.last = users[-1] if users else ""
        marks = {"anthropic": '"tool_result"', "openai": "call_output", "gemini": '"functionResponse"'}
        self.answered = bool(items) and marks[self.api] in json.dumps(items[-1])
        if self.api == "openai":
            developer = [text for role, text in self.turns if role == "developer"]
            self.system += "\n".join(developer)
        self.media = _media(items)  # media type and base64 of every image and document
        self.tools = [t.get("name") for t in body.get("tools", [])]

    def number(self, name: str, default: int) -> int:
        return int(self.args.get(name, default))

    def pieces(self) -> list[str]:
        if self.kind == "seen":
            told = {
                "roles": [role for role, _ in self.turns],
                "users": [text[-80:] for role, text in self.turns if role == "user"],
                "sha": hashlib.sha256(self.last.encode("utf-8", "surrogatepass")).hexdigest(),
                "length": len(self.last),
                "tail": self.last[-200:],
                "system": self.system[:200],
                "max_tokens": self.body.get("max_tokens"),
                "model": self.body.get("model") or self.path,
            }
            return [json.dumps(told, ensure_ascii=False)]
        size, count = self.number("size", 0), self.number("n", 5)
        if size:  # never the same twice: gemini takes repetition for a loop
            dice = random.Random(1)
            letters = "abcdefghijklmnopqrstuvwxyz     "
            return ["".join(dice.choices(letters, k=size - 1)) + " " for _ in range(count)]
        return [f"tok{i} " for i in range(count)]


def _texts(value: Any) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        return ""
    return "\n".join(p["text"] for p in value if isinstance(p, dict) and isinstance(p.get("text"), str))


def _media(value: Any) -> list[tuple[str, str]]:
    """Wherever it stands, in any vendor's form."""
    match value:
        case {"source": {"type": "base64", "media_type": kind, "data": data}}:
            return [(kind, data)]
        case {"inlineData": {"mimeType": kind, "data": data}}:
            return [(kind, data)]
        case {"image_url": str() as url}:
            head, _, data = url.partition(";base64,")
            return [(head.removeprefix("data:"), data)]
        case dict():
            return [found for part in value.values() for found in _media(part)]
        case list():
            return [found for part in value for found in _media(part)]
        case _:
            return []


def _sse(data: dict[str, Any]) -> bytes:
    name = f"event: {data['type']}\n" if "type" in data else ""
    return f"{name}data: {json.dumps(data)}\n\n".encode()  # ASCII: gemini ends a line at U+2028 too


class _Anthropic:
    usage = {"input_tokens": 100, "cache_creation_input_tokens": 3, "cache_read_input_tokens": 7}

    def __init__(self, request: Request) -> None:
        self.index = -1
        self.model = str(request.body.get("model"))

    def start(self) -> bytes:
        message = {"id": "msg_mock", "type": "message", "role": "assistant", "model": self.model, "content": []}
        message |= {"stop_reason": None, "stop_sequence": None, "usage": {**self.usage, "output_tokens": 1}}
        return _sse({"type": "message_start", "message": message})

    def block(self, kind: str, pieces: list[str], **more: Any) -> list[bytes]:
        self.index += 1
        empty = {"text": {"text": ""}, "thinking": {"thinking": "", "signature": ""}, "tool_use": {"input": {}}}[kind]
        begin = {"type": kind, **empty, **more}
        out = [_sse({"type": "content_block_start", "index": self.index, "content_block": begin})]
        name = {"text": "text", "thinking": "thinking", "tool_use": "partial_json"}[kind]
        delta = {"text": "text_delta", "thinking": "thinking_delta", "tool_use": "input_json_delta"}[kind]
        for piece in pieces:
            out.append(
                _sse({"type": "content_block_delta", "index": self.index, "delta": {"type": delta, name: piece}})
            )
        if kind == "thinking":
            sign = {"type": "signature_delta", "signature": "bW9jaw=="}
            out.append(_sse({"type": "content_block_delta", "index": self.index, "delta": sign}))
        return [*out, _sse({"type": "content_block_stop", "index": self.index})]

    def think(self, pieces: list[str]) -> list[bytes]:
        return self.block("thinking", pieces)

    def text(self, pieces: list[str]) -> list[bytes]:
        return self.block("text", pieces)

    def tool(self, command: str, _: list[str]) -> list[bytes]:
        args = json.dumps({"command": command, "description": "run"})
        return self.block("tool_use", [args], id="toolu_mock1", name="Bash")

    def value(self, value: str) -> list[bytes]:
        return self.block("tool_use", [value], id="toolu_value", name="StructuredOutput")

    def end(self, reason: str, count: int) -> bytes:
        delta = {"stop_reason": "tool_use" if reason == "tool" else "end_turn", "stop_sequence": None}
        usage = {**self.usage, "output_tokens": count}
        return _sse({"type": "message_delta", "delta": delta, "usage": usage}) + _sse({"type": "message_stop"})


class _OpenAI:
    def __init__(self, request: Request) -> None:
        self.model = str(request.body.get("model"))
        self.number = -1
        self.items: list[dict[str, Any]] = []
        self.thoughts = 0
        self.parts = request.number("parts", 1)

    def _response(self, status: str, **more: Any) -> dict[str, Any]:
        made = {"id": "resp_mock", "object": "response", "created_at": 1, "status": status, "model": self.model}
        return {**made, "output": self.items if status == "completed" else [], "error": None, **more}

    def _event(self, kind: str, **more: Any) -> bytes:
        self.number += 1
        return _sse({"type": kind, "sequence_number": self.number, **more})

    def start(self) -> bytes:
        return self._event("response.created", response=self._response("in_progress"))

    def _item(self, item: dict[str, Any], middle: list[bytes]) -> list[bytes]:
        index = len(self.items)
        self.items.append(item)
        empty = {"message": {"content": []}, "reasoning": {"summary": []}}.get(item["type"], {})
        begin = {**item, "status": "in_progress"} | empty
        return [
            self._event("response.output_item.added", output_index=index, item=begin),
            *middle,
            self._event("response.output_item.done", output_index=index, item=item),
        ]

    def think(self, pieces: list[str]) -> list[bytes]:
        self.thoughts = len(pieces)
        whole = {"type": "summary_text", "text": "".join(pieces)}
        middle = []
        for index in range(self.parts):
            more = {"item_id": "rs_1", "output_index": len(self.items), "summary_index": index}
            head = "response.reasoning_summary_"
            middle += [
                self._event(head + "part.added", part={**whole, "text": ""}, **more),
                *(self._event(head + "text.delta", delta=piece, **more) for piece in pieces),
                self._event(head + "text.done", text=whole["text"], **more),
                self._event(head + "part.done", part=whole, **more),
            ]
        item = {"id": "rs_1", "type": "reasoning", "summary": [whole] * self.parts, "encrypted_content": "bW9jaw=="}
        return self._item(item, middle)

    def text(self, pieces: list[str]) -> list[bytes]:
        more = {"item_id": "msg_1", "output_index": len(self.items), "content_index": 0}
        middle = [self._event("response.output_text.delta", delta=piece, **more) for piece in pieces]
        part = {"type": "output_text", "text": "".join(pieces), "annotations": []}
        item = {"id": "msg_1", "type": "message", "status": "completed", "role": "assistant", "content": [part]}
        return self._item(item, middle)

    def tool(self, command: str, tools: list[str]) -> list[bytes]:
        name = next((n for n in ("exec_command", "shell_command", "shell") if n in tools), "exec_command")
        shaped = {"exec_command": {"cmd": command}, "shell_command": {"command": command}}
        args = json.dumps(shaped.get(name, {"command": ["bash", "-lc", command]}))
        item = {"id": "fc_1", "type": "function_call", "status": "completed", "call_id": "call_1", "name": name}
        return self._item({**item, "arguments": args}, [])

    def end(self, _: str, count: int) -> bytes:
        usage = {"input_tokens": 100, "input_tokens_details": {"cached_tokens": 7}, "output_tokens": count}
        usage |= {"output_tokens_details": {"reasoning_tokens": self.thoughts}, "total_tokens": 100 + count}
        return self._event("response.completed", response=self._response("completed", usage=usage))


class _Gemini:
    def __init__(self, request: Request) -> None:
        self.model = request.path
        self.said = self.thoughts = 0

    def _chunk(self, parts: list[dict[str, Any]], finish: str | None = None) -> bytes:
        candidate: dict[str, Any] = {"content": {"role": "model", "parts": parts}, "index": 0}
        if finish:
            candidate["finishReason"] = finish
        usage = {"promptTokenCount": 100, "cachedContentTokenCount": 7, "candidatesTokenCount": self.said}
        usage |= {"thoughtsTokenCount": self.thoughts, "totalTokenCount": 100 + self.said + self.thoughts}
        return _sse({"candidates": [candidate], "usageMetadata": usage, "modelVersion": "m", "responseId": "r"})

    def start(self) -> bytes:
        return b""

    def think(self, pieces: list[str]) -> list[bytes]:
        self.thoughts = len(pieces)
        return [self._chunk([{"text": piece, "thought": True}]) for piece in pieces]

    def text(self, pieces: list[str]) -> list[bytes]:
        self.said = len(pieces)
        return [self._chunk([{"text": piece}]) for piece in pieces]

    def tool(self, command: str, _: list[str]) -> list[bytes]:
        return self.call("run_shell_command", {"command": command, "description": "run"})

    def call(self, name: str, args: dict[str, str]) -> list[bytes]:
        self.said = 1
        return [self._chunk([{"functionCall": {"name": name, "args": args}, "thoughtSignature": "bW9jaw=="}])]

    def end(self, _: str, count: int) -> bytes:  # it counts for itself
        return self._chunk([{"text": ""}], "STOP")


_APIS = {"anthropic": _Anthropic, "openai": _OpenAI, "gemini": _Gemini}


def _error(request: Request, code: int) -> dict[str, Any]:
    if request.api == "anthropic":
        kinds = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error", 529: "overloaded_error"}
        return {"type": "error", "error": {"type": kinds.get(code, "api_error"), "message": f"mock {code}"}}
    if request.api == "openai":
        text = "The model `x` does not exist or you do not have access to it." if code == 404 else f"mock {code}"
        return {"error": {"message": text, "type": "invalid_request_error", "param": None, "code": None}}
    kinds = {401: "UNAUTHENTICATED", 404: "NOT_FOUND", 429: "RESOURCE_EXHAUSTED"}
    text = "models/x is not found for API version v1beta" if code == 404 else f"mock {code}"
    return {"error": {"code": code, "message": text, "status": kinds.get(code, "INTERNAL")}}


class MockLLM:
    """`with MockLLM() as mock:` serves on `mock.url` from a thread of its own; `requests` holds what was asked."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self.requests: list[Request] = []
        self.url = ""
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mockllm", daemon=True)

    def __enter__(self) -> "MockLLM":
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *exc: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._main())
        self._loop.close()

    async def _main(self) -> None:
        self._stop = asyncio.Event()
        self._clients: set[asyncio.Task[Any]] = set()
        server = await asyncio.start_server(self._client, "127.0.0.1", 0, limit=1 << 20, ssl=self._tls)
        self.url = f"http{'s' if self._tls else ''}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._ready.set()
        await self._stop.wait()
        server.close()
        for task in self._clients:
            task.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._clients.add(task)
        task.add_done_callback(self._clients.discard)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while await self._serve(reader, writer):
                pass
        writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, target, _ = head[0].split(" ", 2)
        headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in head[1:] if line)}
        raw = b""
        if headers.get("expect", "").lower() == "100-continue":
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if headers.get("transfer-encoding", "").lower() == "chunked":
            while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
                raw += await reader.readexactly(size)
                await reader.readexactly(2)
            await reader.readexactly(2)
        elif length := int(headers.get("content-length", "0")):
            raw = await reader.readexactly(length)
        path = target.partition("?")[0]
        if method != "POST" or not path.endswith(("/messages", "/responses", "enerateContent")):
            await self._json(writer, 200, {"input_tokens": 1, "totalTokens": 1, "data": [], "models": []})
            return True
        request = Request(path, json.loads(raw))
        self.requests.append(request)
        return await self._answer(request, writer)

    async def _json(self, writer: asyncio.StreamWriter, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        head = f"HTTP/1.1 {status} x\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
        writer.write(head.encode() + data)
        await writer.drain()

    async def _answer(self, request: Request, writer: asyncio.StreamWriter) -> bool:
        if request.kind == "status":
            await self._json(writer, request.number("code", 500), _error(request, request.number("code", 500)))
            return True
        if request.kind == "hang":
            await self._stop.wait()
            return False
        api = _APIS[request.api](request)
        pieces, reason = request.pieces(), "stop"
        events = [api.start()]
        if request.kind == "tool" and not request.answered:
            events += api.tool(request.args.get("cmd", "echo+hello-from-tool").replace("+", " "), request.tools)
            reason = "tool"
        elif request.kind == "call" and isinstance(api, _Gemini) and not request.answered:
            args = dict(request.args)
            events += api.call(args.pop("tool"), args)
            reason = "tool"
        elif request.kind == "json":
            value = request.args.get("value", '{"a":"b"}')
            if isinstance(api, _Anthropic) and "StructuredOutput" in request.tools and not request.answered:
                events += [*api.text(["first ", "I look "]), *api.value(value)]
                reason = "tool"
            else:
                events += [*api.text(["first ", "I look "]), *api.text([value])]
        else:
            if request.kind == "think":
                events += api.think([f"thought{i} " for i in range(3)])
            events += api.text(pieces[:3] if request.kind in ("drop", "eof") else pieces)
        if request.kind in ("drop", "eof"):
            events = events[: -(1 if request.api != "gemini" else 0) or None]
        else:
            events.append(api.end(reason, len(pieces)))
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        delay_s = request.number("ms", 0) / 1000
        for event in events:
            if event:
                writer.write(f"{len(event):x}\r\n".encode() + event + b"\r\n")
                if delay_s:
                    await writer.drain()
                    await asyncio.sleep(delay_s)
        await writer.drain()
        if request.kind == "drop":
            await asyncio.sleep(0.05)  # what was written is on its way before the cut
            writer.transport.abort()
            return False
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True
