"""The callers of the soak: every kind of request, each with what it must come to."""

import asyncio
import collections
import contextlib
import itertools
import json
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx

from tests.system.sdks.fake_claude import tokens

# What a run may truly end as when its worker or its store is killed; nothing else is a failure that we caused.
OF_FAULTS = frozenset({"worker_lost", "worker_shutdown", "store_unavailable", "backend_unavailable"})
_AGAIN = (429, 503)
_PATIENCE_S = 60.0
_SAID = "[[fake:say n=8]] hello"
_TOKENS = "".join(tokens(8))


class WrongError(Exception):
    """What must never be: a lost run, a false success, an answer that is not the one asked for."""


class Callers:
    """`tally` counts how each kind of request ended; `wrong` holds what must not be; `seen` the ids of all runs told."""

    def __init__(self, bases: list[str], rate: float) -> None:
        self.bases = bases
        self.tally: collections.Counter[str] = collections.Counter()
        self.wrong: list[str] = []
        self.seen: set[str] = set()
        self.under_way = 0
        self._rate = rate
        self._numbers = itertools.count(1)
        self._http = httpx.AsyncClient(timeout=30, limits=httpx.Limits(max_connections=None))

    @property
    def kinds(self) -> dict[str, Callable[[str], Awaitable[None]]]:
        return {
            "native": self.native,
            "native stream": self.native_stream,
            "asynchronous": self.asynchronous,
            "chat": self.chat,
            "chat stream": self.chat_stream,
            "messages": self.messages,
            "background response": self.response,
            "parallel": self.parallel,
            "chain": self.chain,
            "compare": self.compare,
            "session": self.session,
            "cancel": self.cancel,
            "hang-up": self.hang_up,
        }

    async def run(self, seconds: float) -> None:
        """So many requests a second, of each kind in turn; returns when all that were begun have ended."""
        stop = time.monotonic() + seconds
        deck = itertools.cycle(self.kinds.items())
        async with asyncio.TaskGroup() as group:
            while time.monotonic() < stop:
                if self.under_way < 200:
                    group.create_task(self._one(*next(deck)))
                await asyncio.sleep(1 / self._rate)
        await self._http.aclose()

    async def _one(self, kind: str, what: Callable[[str], Awaitable[None]]) -> None:
        self.under_way += 1
        key = f"soak-{next(self._numbers)}"
        try:
            async with asyncio.timeout(2 * _PATIENCE_S):
                await what(key)
            self.tally[f"{kind}: ended"] += 1
        except WrongError as error:
            self.wrong.append(f"{kind} {key}: {error}")
        except Exception as error:  # noqa: BLE001  # whatever it is, it is no answer
            self.wrong.append(f"{kind} {key}: {type(error).__name__}: {error}")
        finally:
            self.under_way -= 1

    # -- asking, as a client does that does not give up

    async def _tries(self) -> AsyncIterator[str]:
        """A replica to ask, again and again."""
        give_up = time.monotonic() + _PATIENCE_S
        while time.monotonic() < give_up:
            yield random.choice(self.bases)
            await asyncio.sleep(0.25)
        raise WrongError(f"no answer within {_PATIENCE_S:g} s")

    async def ask(self, method: str, path: str, body: Any = None, key: str = "", **headers: str) -> httpx.Response:
        headers |= {"idempotency-key": key} if key else {}
        async for base in self._tries():
            try:
                answer = await self._http.request(method, base + path, json=body, headers=headers)
            except httpx.TransportError as error:
                self.tally[f"asked again: {type(error).__name__}"] += 1
                continue
            if run_id := answer.headers.get("x-run-id"):
                self.seen.add(run_id)
            if answer.status_code not in _AGAIN:
                return answer
            self.tally[f"asked again: {answer.status_code}"] += 1
        raise AssertionError

    async def ended(self, run_id: str) -> dict[str, Any]:
        async for _ in self._tries():
            answer = await self.ask("GET", f"/api/v1/runs/{run_id}")
            if answer.status_code != 200:
                raise WrongError(f"{run_id} is not known any more: {answer.text}")
            if (found := answer.json()).get("result"):
                return dict(found)
        raise AssertionError

    def failed(self, code: str) -> None:
        """Notes a failure. Raises: Wrong where no fault explains it."""
        if code not in OF_FAULTS:
            raise WrongError(f"failed with {code}")
        self.tally[f"failed: {code}"] += 1

    def told(self, answer: httpx.Response, expected: str, text: Callable[[Any], str]) -> None:
        body = answer.json()
        if answer.status_code != 200:
            self.failed(str((body.get("error") or {}).get("code") or (body.get("error") or {}).get("type")))
        elif text(body) != expected:
            raise WrongError(f"answered {text(body)[:80]!r}: {answer.text[:300]}")

    # -- the kinds

    async def native(self, key: str) -> None:
        answer = await self.ask("POST", "/api/v1/prompt", _echo(key, ephemeral=True), key)
        self.told(answer, key, lambda body: str(body["output"]))

    async def asynchronous(self, key: str) -> None:
        body = _echo(key, ephemeral=True, retry=3)
        answer = await self.ask("POST", "/api/v1/prompt", body, key, prefer="respond-async")
        found = await self.ended(answer.json()["id"])
        if found["status"] != "succeeded":
            self.failed(found["result"]["error_code"] if "error_code" in found["result"] else found["status"])
        elif found["result"]["output"] != key:
            raise WrongError(f"came to {found['result']}")

    async def native_stream(self, key: str) -> None:
        words = " ".join(f"w{i}" for i in range(30))
        body = _echo(words, "--delay-ms=20", output_format="stream-json", ephemeral=True)
        events: list[dict[str, Any]] = []
        run_id = ""
        async for base in self._tries():
            if run_id:
                request = ("GET", f"{base}/api/v1/runs/{run_id}/events?after={len(events)}", None)
            else:
                request = ("POST", f"{base}/api/v1/prompt", body)
            headers = {"accept": "application/x-ndjson", "idempotency-key": key}
            with contextlib.suppress(httpx.TransportError):
                async with self._http.stream(request[0], request[1], json=request[2], headers=headers) as answer:
                    if answer.status_code in _AGAIN:
                        continue
                    if answer.status_code != 200:
                        self.failed(json.loads(await answer.aread())["error"]["code"])
                        return
                    run_id = answer.headers["x-run-id"]
                    self.seen.add(run_id)
                    async for line in answer.aiter_lines():
                        if line.strip():
                            events.append(json.loads(line))
            if events and events[-1]["type"] in ("done", "error"):
                break
            self.tally["followed again"] += 1
        if [event["sequence"] for event in events] != list(range(1, len(events) + 1)):
            raise WrongError(f"{run_id}: sequences {[event['sequence'] for event in events]}")
        if events[-1]["type"] == "error":
            self.failed(events[-1]["content"]["code"])
        elif (text := "".join(e["content"]["text"] for e in events if e["type"] == "message")) != words:
            raise WrongError(f"streamed {text[:80]!r}")

    async def chat(self, key: str) -> None:
        body = {"model": "claude", "messages": [{"role": "user", "content": _SAID}]}
        answer = await self.ask("POST", "/openai/v1/chat/completions", body, key)
        self.told(answer, _TOKENS, lambda body: str(body["choices"][0]["message"]["content"]))

    async def chat_stream(self, key: str) -> None:
        """One that is cut is not gone on with: its run is looked at."""
        body = {"model": "claude", "messages": [{"role": "user", "content": _SAID}], "stream": True}
        text, run_id, last = "", "", ""
        async for base in self._tries():
            with contextlib.suppress(httpx.TransportError):
                path = base + "/openai/v1/chat/completions"
                async with self._http.stream("POST", path, json=body, headers={"idempotency-key": key}) as answer:
                    if answer.status_code in _AGAIN:
                        continue
                    if answer.status_code != 200:
                        self.failed(json.loads(await answer.aread())["error"]["code"])
                        return
                    run_id = answer.headers["x-run-id"]
                    self.seen.add(run_id)
                    async for line in answer.aiter_lines():
                        if line.startswith("data: {"):
                            last = line.removeprefix("data: ")
                            text += "".join(
                                c["delta"].get("content") or "" for c in json.loads(last).get("choices", [])
                            )
                        elif line == "data: [DONE]":
                            last = line
            break
        if "[DONE]" in last:
            if text != _TOKENS:
                raise WrongError(f"streamed {text[:80]!r}")
        elif last.startswith('{"error"') or '"error":' in last:
            self.failed(str(json.loads(last)["error"].get("code")))
        else:
            self.tally["streams cut"] += 1
            if run_id:
                await self.ended(run_id)

    async def messages(self, key: str) -> None:
        body = {"model": "claude", "max_tokens": 100, "messages": [{"role": "user", "content": _SAID}]}
        answer = await self.ask("POST", "/anthropic/v1/messages", body, key)
        if answer.status_code >= 500:
            self.tally["failed: by fault"] += 1
            return
        self.told(answer, _TOKENS, lambda body: str(body["content"][0]["text"]))

    async def response(self, key: str) -> None:
        body = {"model": "claude", "input": _SAID, "background": True}
        found = (await self.ask("POST", "/openai/v1/responses", body, key)).json()
        async for _ in self._tries():
            found = (await self.ask("GET", f"/openai/v1/responses/{found['id']}")).json()
            if found.get("status") not in ("queued", "in_progress"):
                break
        if found.get("status") == "completed":
            if found["output"][-1]["content"][0]["text"] != _TOKENS:
                raise WrongError(f"came to {found['output']}")
        else:
            self.tally["failed: by fault"] += 1

    async def parallel(self, key: str) -> None:
        tasks = [{"backend": "echo", "prompt": f"{key} {i}", "retry": 3} for i in range(6)]
        answer = await self.ask("POST", "/api/v1/parallel", {"tasks": tasks, "max_parallel": 3}, key)
        self._of_flow(answer, [task["prompt"] for task in tasks])

    async def chain(self, key: str) -> None:
        steps = [{"backend": "echo", "prompt": f"{key}", "retry": 3}]
        steps += [{"backend": "echo", "prompt": "{{previous}} more", "retry": 3} for _ in range(2)]
        answer = await self.ask("POST", "/api/v1/chain", {"steps": steps}, key)
        self._of_flow(answer, [key, f"{key} more", f"{key} more more"])

    async def compare(self, key: str) -> None:
        body = {"prompt": key, "backends": ["echo", "echo/other"]}
        self._of_flow(await self.ask("POST", "/api/v1/compare", body, key), [key, key])

    def _of_flow(self, answer: httpx.Response, expected: list[str]) -> None:
        if answer.status_code != 200:
            self.failed(answer.json()["error"]["code"])
            return
        results = answer.json()["results"]
        if len(results) != len(expected):
            raise WrongError(f"{len(results)} results of {len(expected)}: {answer.text[:300]}")
        for result, text in zip(results, expected, strict=True):
            if result["status"] == "succeeded":
                if result["output"] != text:
                    raise WrongError(f"a lane came to {result['output']!r}, not {text!r}")
            elif result["error_code"] not in ("cancelled", "previous_failed"):
                self.failed(result["error_code"])

    async def session(self, key: str) -> None:
        first = (await self.ask("POST", "/api/v1/prompt", _echo(key, retry=3), key)).json()
        if "session_id" not in first:
            self.failed(first["error"]["code"])
            return
        path = f"/api/v1/sessions/{first['session_id']}"
        second = await self.ask("POST", f"{path}/resume", {"prompt": f"{key} again", "retry": 3}, f"{key}-again")
        if second.status_code == 200 and second.json()["session_id"] != first["session_id"]:
            raise WrongError(f"resumed as {second.json()['session_id']}")
        async for _ in self._tries():
            gone = await self.ask("DELETE", path)
            if gone.status_code in (200, 404):
                break
            if gone.status_code != 409:  # a turn of it is still under way
                raise WrongError(f"not deleted: {gone.text}")
        if (await self.ask("GET", path)).status_code != 404:
            raise WrongError("a deleted session is still there")

    async def cancel(self, key: str) -> None:
        body = _echo(key, "--hang", ephemeral=True)
        run_id = (await self.ask("POST", "/api/v1/prompt", body, key, prefer="respond-async")).json()["id"]
        await asyncio.sleep(random.random())  # in whatever state it is then
        await self.ask("DELETE", f"/api/v1/runs/{run_id}")
        self._ended_as("cancelled", await self.ended(run_id))

    async def hang_up(self, key: str) -> None:
        body = _echo(key, "--hang", ephemeral=True, output_format="stream-json")
        run_id = ""
        async for base in self._tries():
            with contextlib.suppress(httpx.TransportError):
                headers = {"idempotency-key": key}
                async with self._http.stream("POST", base + "/api/v1/prompt", json=body, headers=headers) as answer:
                    run_id = answer.headers.get("x-run-id", "")
                    if answer.status_code == 200:
                        async for _ in answer.aiter_bytes():
                            break
                    elif answer.status_code not in _AGAIN:
                        self.failed(json.loads(await answer.aread())["error"]["code"])
            if run_id:
                break
        self.seen.add(run_id)
        self._ended_as("cancelled", await self.ended(run_id))

    def _ended_as(self, status: str, found: dict[str, Any]) -> None:
        if found["status"] == "failed":
            self.tally["failed: by fault"] += 1
        elif found["status"] != status:
            raise WrongError(f"ended as {found['status']}")


def _echo(prompt: str, *extra: str, **fields: Any) -> dict[str, Any]:
    return {"backend": "echo", "prompt": prompt, "extra": list(extra), **fields}
