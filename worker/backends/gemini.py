"""Gemini CLI, as observed of 0.61.0: stdin to `-o stream-json`, in a HOME of its own."""

import datetime
import json
from collections.abc import Mapping
from typing import Any

from shared.errors import UnsupportedParameter
from shared.event import Content, Init, Progress, TokenUsage, ToolResult, ToolUse
from shared.host import Capabilities
from shared.run import Failure, Outcome, RunSpec, Turn, Usage
from worker.backends.answer import Answer
from worker.backends.base import Backend, Exit, Launch, Parser, Place, Settings
from worker.backends.causes import classify, ended
from worker.backends.gemini_text import Again
from worker.backends.lines import Lines, number, part, text
from worker.backends.options import extra, lacking, resolve
from worker.backends.turns import NOTHING, content, document, is_text

_APPROVAL = {"": "default", "default": "default", "auto": "auto_edit", "none": "yolo", "always": "default"}
MODEL = "gemini-2.5-pro"  # without a name it asks another model which one to take, at every run
_NO_SESSION = "00000000-0000-4000-8000-000000000000"  # with its flag it gives another
LOGIN = ("oauth_creds.json", "google_accounts.json", "installation_id")


class Gemini(Backend):
    name = "gemini"
    own_home = True
    default_command = ("gemini",)
    npm_package = "@google/gemini-cli"
    vendor_env = ("GEMINI_API_KEY", "GOOGLE_*")

    def capabilities(self, *, as_root: bool) -> Capabilities:  # noqa: ARG002  # the same for root
        every = ("default", "auto", "none", "always")
        return Capabilities(
            modes={"": every, "full": every, "read-only": every, "workspace": ("default", "auto", "always")},
            system_prompt=("replace",),
            options=("model", "max_turns", "ephemeral", "resume", "add_dirs", "history"),
            attachments=("image/png", "image/jpeg", "image/webp", "application/pdf", "text/*"),
        )

    def launch(self, spec: RunSpec, settings: Settings, place: Place, base_env: Mapping[str, str]) -> Launch:
        able = self.capabilities(as_root=settings.as_root)
        options = resolve(spec, settings, able)
        env = {**base_env, **settings.env}
        # In its default mode only tools that read are registered.
        approval = "default" if options.sandbox == "read-only" else _APPROVAL[options.approval]
        argv = [*settings.command, "-o", "stream-json", "--skip-trust", "--approval-mode", approval]
        argv += ["-m", options.model or MODEL]
        for folder in place.add_dirs:
            argv += ["--include-directories", folder]
        files = {}
        if spec.resume:
            if spec.attachments:
                raise UnsupportedParameter(
                    "gemini can be given attachments only where a session begins", field=spec.attachments[0].field
                )
            argv += ["--resume", spec.resume]
        elif spec.history or spec.attachments:
            path = f"{place.scratch}/session.json"
            files[path] = session_file(spec, _NO_SESSION)
            argv += ["--session-file", path]
        argv += [*settings.extra_flags, *extra(spec, settings, able.extra)]
        own = f"{place.own_home}/.gemini"
        made = own_settings(env)
        if options.max_turns:
            made["model"] = {"maxSessionTurns": options.max_turns}
        if settings.allowed_tools:
            made["tools"] = {"allowed": list(settings.allowed_tools)}
        files[f"{own}/settings.json"] = json.dumps(made).encode()
        env |= {
            "HOME": place.own_home,
            "GEMINI_CLI_NO_RELAUNCH": "1",
            "GEMINI_CLI_TRUST_WORKSPACE": "true",
            "NO_COLOR": "1",
        }
        if options.system_prompt is not None:
            path = f"{place.scratch}/system.md"
            files[path] = options.system_prompt.encode("utf-8", "replace")
            env["GEMINI_SYSTEM_MD"] = path
        return Launch(
            argv=tuple(argv),
            env=env,
            cwd=place.cwd,
            stdin=spec.prompt.encode("utf-8", "replace"),
            files=files,
            copies={f"{own}/{name}": f"{place.home}/.gemini/{name}" for name in LOGIN},
            stdout="file",
            not_enforced=lacking(options, able),
        )

    def parser(self, spec: RunSpec) -> Parser:  # noqa: ARG002  # the interface
        return _Parser()


def session_file(spec: RunSpec, session_id: str, project_hash: str = "") -> bytes:
    """The history as a session file of the CLI. It joins a last turn of the user's with the prompt: so the prompt's
    attachments come to it."""
    at = "2026-01-01T00:00:00.000Z"
    turns = list(spec.history)
    if spec.attachments:
        turns.append(Turn(role="user", text="", attachments=spec.attachments))
    messages = [
        {
            "id": f"{index:08d}",
            "timestamp": at,
            "type": "user" if turn.role == "user" else "gemini",
            "content": _parts(turn),
        }
        for index, turn in enumerate(turns)
    ]
    made = {"sessionId": session_id, "projectHash": project_hash, "startTime": at, "lastUpdated": at}
    return json.dumps({**made, "messages": messages}).encode()


def _parts(turn: Turn) -> list[dict[str, Any]]:
    """The CLI leaves out a turn of the user's whose text begins with / or ? or a mark of its own, unless a part says
    of itself that it is no thought (0.61.0)."""
    as_it_is = {"thought": False} if turn.role == "user" else {}
    parts: list[dict[str, Any]] = []
    for found in turn.attachments:
        if is_text(found):
            parts.append({"text": f"{found.name or 'document'}:\n\n{document(found)}\n\n", **as_it_is})
        else:
            content(found)  # refuses what is no base64
            parts.append({"inlineData": {"mimeType": found.media_type.lower(), "data": found.data}})
    if turn.text.strip() or not parts:
        parts.append({"text": turn.text if turn.text.strip() else NOTHING, **as_it_is})
    return parts


def own_settings(env: Mapping[str, str]) -> dict[str, Any]:
    """What its HOME says for every run."""
    if env.get("GEMINI_API_KEY"):
        auth = "gemini-api-key"
    else:
        vertex = env.get("GOOGLE_GENAI_USE_VERTEXAI") or env.get("GOOGLE_API_KEY")
        auth = "vertex-ai" if vertex else "oauth-personal"
    return {
        "security": {"auth": {"selectedType": auth}},
        "general": {"maxAttempts": 2, "enableAutoUpdate": False, "enableAutoUpdateNotification": False},
        "privacy": {"usageStatisticsEnabled": False},
        "telemetry": {"enabled": False},
    }


class _Parser(Parser):
    def __init__(self) -> None:
        self._lines = Lines()
        self._answer = Answer()
        self._again = Again(self._answer)
        self._session_id: str | None = None
        self._model: str | None = None
        self._result: dict[str, Any] | None = None
        self._error = ""
        self._looped = False
        self._turns = 0

    def feed(self, data: bytes) -> list[Content]:
        return [event for item in self._lines.feed(data) for event in self._item(item)]

    def _item(self, item: dict[str, Any]) -> list[Content]:
        match item.get("type"):
            case "init":
                self._session_id = text(item.get("session_id")) or None
                self._model = text(item.get("model")) or None
                return [Init(model=self._model, backend_session_id=self._session_id)]
            case "message":
                if item.get("role") != "assistant":  # it says the prompt back
                    return []
                return self._again.add(text(item.get("content")), _time(item.get("timestamp")))
            case "tool_use":
                events = self._again.close()
                self._turns += 1
                id, name = text(item.get("tool_id")), text(item.get("tool_name"))
                return [*events, ToolUse(id, name, item.get("parameters"))]
            case "tool_result":
                failed = item.get("status") == "error"
                output = text(item.get("output")) or text(part(item, "error", "message"))
                return [ToolResult(text(item.get("tool_id")), output, failed)]
            case "error":
                message = text(item.get("message"))
                if item.get("severity") != "warning":
                    self._error = message
                self._looped = self._looped or "Loop detected" in message
                return [Progress(message)]
            case "result":
                self._result = item
                used = _usage(item)
                events = self._again.release()
                return [
                    *events,
                    TokenUsage(used.input_tokens, used.output_tokens, used.cached_tokens, used.reasoning_tokens),
                ]
            case _:
                return []

    def finish(self, exit: Exit) -> tuple[list[Content], Outcome]:
        events = [event for item in self._lines.flush() for event in self._item(item)]
        events += self._again.release()
        return events, Outcome(
            exit_code=exit.code,
            output=self._answer.text,
            usage=None if self._result is None else _usage(self._result),
            failure=self._failure(exit),
            backend_session_id=self._session_id,
            model=self._model,
            turns=self._turns + 1,
        )

    def _failure(self, exit: Exit) -> Failure | None:
        if exit.code == 53:
            return Failure("backend_error", "gemini reached its limit of turns before it was done", "max_turns")
        if exit.code == 41:
            return classify("gemini", exit.stderr.strip()[-1000:] or "no login", status=401)
        result = self._result
        if result is None:
            if exit.code == 42 and "resum" in exit.stderr.lower():
                return Failure("not_found", f"gemini: {exit.stderr.strip()[-1000:]}", "unknown_session")
            return ended("gemini", exit.code if exit.code < 128 else 1, exit.stderr or self._error)
        if self._looped:  # it says success
            return Failure("backend_error", "gemini took the model's text for a loop and stopped", "loop_detected")
        if result.get("status") == "success" and exit.code == 0:
            return None
        said = text(part(result, "error", "message")) or self._error
        # Its exit code is the HTTP status, of which a process keeps the last eight bits.
        status = {401 % 256: 401, 429 % 256: 429, 500 % 256: 500, 400 % 256: 400, 503 % 256: 503, 404 % 256: 404}
        return classify("gemini", said or exit.stderr.strip()[-1000:], status=status.get(exit.code))


def _usage(result: dict[str, Any]) -> Usage:
    """Thoughts are only part of the total."""
    stats = result.get("stats")
    given, said = number(part(stats, "input_tokens")), number(part(stats, "output_tokens"))
    thought = max(number(part(stats, "total_tokens")) - given - said, 0)
    return Usage(given, said + thought, number(part(stats, "cached")), thought)


def _time(value: Any) -> float:
    try:
        return datetime.datetime.fromisoformat(text(value)).timestamp()
    except ValueError:
        return 0.0
