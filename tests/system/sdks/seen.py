"""What a client program saw, as one JSON object on stdout. Shared by the Python programs, each in its own environment.

<program> <scenario> <base URL> [name=value ...]
"""

import contextlib
import importlib
import json
import sys
import time
from collections.abc import Callable
from typing import Any

# One red pixel.
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8DwHwAFBQIAX8jx0gAAAABJRU5ErkJggg=="

Scenario = Callable[[str, dict[str, str], dict[str, Any]], None]


def _count(requests: list[dict[str, Any]]) -> None:
    """Notes every request that leaves through httpx, or what the newer SDKs use in its place."""
    for name in ("httpx", "httpx2"):
        with contextlib.suppress(ImportError):
            transport = importlib.import_module(name).HTTPTransport
            original = transport.handle_request

            def noting(self: Any, request: Any, original: Any = original) -> Any:
                note = {"method": request.method, "path": request.url.path, "status": None}
                requests.append(note)
                response = original(self, request)
                note["status"] = response.status_code
                note["run"] = response.headers.get("x-run-id")
                return response

            transport.handle_request = noting


def error_of(error: BaseException) -> dict[str, Any]:
    headers = getattr(getattr(error, "response", None), "headers", None) or {}
    body = getattr(error, "body", None)
    return {
        "kind": type(error).__name__,
        "kinds": [kind.__name__ for kind in type(error).__mro__],
        "status": getattr(error, "status_code", None),
        "message": str(error),
        "code": getattr(error, "code", None),
        "param": getattr(error, "param", None),
        "type": getattr(error, "type", None) or ((body or {}).get("error") or {}).get("type")
        if isinstance(body, dict) or body is None
        else None,
        "retry_after": headers.get("retry-after"),
        "should_retry": headers.get("x-should-retry"),
        "request_id": getattr(error, "request_id", None),
    }


class Pieces:
    """Counts the pieces of a stream and keeps when they came."""

    def __init__(self, seen: dict[str, Any]) -> None:
        self._seen = seen
        self._begun = time.monotonic()
        seen.update(text="", thinking="", chunks=0, first_s=None, last_s=None)

    def add(self, text: str, *, field: str = "text") -> None:
        self._seen["last_s"] = time.monotonic() - self._begun
        if self._seen["first_s"] is None:
            self._seen["first_s"] = self._seen["last_s"]
        self._seen[field] += text
        self._seen["chunks"] += 1


def run(scenarios: dict[str, Scenario]) -> None:
    requests: list[dict[str, Any]] = []
    _count(requests)

    def seen_of(name: str, base: str, *words: str) -> str:
        options = dict(word.split("=", 1) for word in words)
        seen: dict[str, Any] = {}
        requests.clear()
        begun = time.monotonic()
        try:
            scenarios[name](base, options, seen)
        except Exception as error:  # noqa: BLE001  # whatever it is, it is what the caller would see
            seen["error"] = error_of(error)
        seen["took_s"] = time.monotonic() - begun
        seen["requests"] = requests
        return json.dumps(seen)

    if sys.argv[1:]:
        print(seen_of(*sys.argv[1:]))
    else:
        for line in sys.stdin:
            print(seen_of(*json.loads(line)), flush=True)
