"""Claude Code, as observed of 2.1.329: `claude -p` with stream-json in and out."""

import json
from collections.abc import Mapping
from typing import Any

from shared.errors import NotEnforceable
from shared.event import Content, Init, Progress, Thinking, TokenUsage, ToolResult, ToolUse
from shared.host import Capabilities
from shared.run import Failure, Outcome, RunSpec, Usage
from worker.backends.answer import Answer
from worker.backends.base import Backend, Exit, Launch, Parser, Place, Settings
from worker.backends.causes import classify, ended
from worker.backends.lines import Lines, number, part, parts, text
from worker.backends.options import extra, lacking, resolve

_PERMISSION = {
    "": "default",
    "default": "default",
    "auto": "acceptEdits",
    "none": "bypassPermissions",
    "always": "dontAsk",
}
_READING = ("Read", "Glob", "Grep", "WebFetch", "WebSearch", "TodoWrite")
_EXTRA = ("--fallback-model=", "--effort=")

# Its own retries go on for three minutes unless bounded; nothing but model calls leaves the machine.
_SWITCHES = {
    "CLAUDE_CODE_MAX_RETRIES": "2",
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    "CLAUDE_CODE_DISABLE_FILE_MENTIONS": "1",
    "DISABLE_TELEMETRY": "1",
    "DISABLE_AUTOUPDATER": "1",
    "DISABLE_ERROR_REPORTING": "1",
}


class Claude(Backend):
    name = "claude"
    default_command = ("claude",)
    npm_package = "@anthropic-ai/claude-code"
    vendor_env = ("ANTHROPIC_*", "CLAUDE_CODE_OAUTH_TOKEN", "CLAUDE_CODE_USE_*", "CLAUDE_CONFIG_DIR")

    def capabilities(self, *, as_root: bool) -> Capabilities:  # noqa: ARG002  # IS_SANDBOX may lift root's ban
        every = ("default", "auto", "none", "always")
        return Capabilities(
            modes={"": every, "full": every, "read-only": every, "workspace": ("default", "auto", "always")},
            system_prompt=("replace", "append"),
            options=("model", "max_turns", "max_tokens", "ephemeral", "resume", "add_dirs"),
            extra=_EXTRA,
        )

    def launch(self, spec: RunSpec, settings: Settings, place: Place, base_env: Mapping[str, str]) -> Launch:
        able = self.capabilities(as_root=settings.as_root)
        options = resolve(spec, settings, able)
        tools = settings.allowed_tools
        if options.sandbox == "workspace" and any(tool.startswith("Bash") for tool in tools):
            raise NotEnforceable(
                "claude cannot hold sandbox_mode 'workspace' here: this host allows Bash without approval",
                field="sandbox_mode",
            )
        if options.approval == "none" and settings.as_root and not settings.env.get("IS_SANDBOX"):
            raise NotEnforceable(
                "claude refuses approval_mode 'none' as root: run the worker as another user, or set "
                "backends.claude.env.IS_SANDBOX to 1 where the host is a sandbox",
                field="approval_mode",
            )
        argv = [*settings.command, "-p", "--input-format", "stream-json", "--output-format", "stream-json"]
        argv += ["--verbose", "--include-partial-messages", "--permission-mode", _PERMISSION[options.approval]]
        # Variadic flags: the next word that begins with -- ends them.
        if options.sandbox == "read-only":
            argv += ["--tools", ",".join(_READING)]
            tools = tuple(tool for tool in tools if tool in _READING)
        if tools:
            argv += ["--allowedTools", ",".join(tools)]
        for folder in place.add_dirs:
            argv += ["--add-dir", folder]
        if options.model:
            argv += ["--model", options.model]
        if options.max_turns:
            argv += ["--max-turns", str(options.max_turns)]
        if spec.resume:
            argv += ["--resume", spec.resume]
        elif spec.session_id is None:
            argv += ["--no-session-persistence"]
        argv += [*settings.extra_flags, *extra(spec, settings, _EXTRA)]
        env = {**base_env, **_SWITCHES}
        if options.max_tokens:
            env["CLAUDE_CODE_MAX_OUTPUT_TOKENS"] = str(options.max_tokens)
        return Launch(
            argv=tuple(argv),
            env={**env, **settings.env},
            cwd=place.cwd,
            stdin=_stdin(spec, options.system_prompt),
            not_enforced=lacking(options, able),
        )

    def parser(self, spec: RunSpec) -> Parser:  # noqa: ARG002  # the interface
        return _Parser()


def _stdin(spec: RunSpec, system_prompt: str | None) -> bytes:
    """`client_composed` makes `@file` and `/command` plain text (CLI 2.1.329; nothing else does for both)."""
    request: dict[str, Any] = {"subtype": "initialize", "hooks": None}
    if system_prompt is not None and spec.system_prompt_mode == "append":
        request["appendSystemPrompt"] = system_prompt
    elif system_prompt is not None:
        request["systemPrompt"] = [system_prompt]
    message = {
        "type": "user",
        "message": {"role": "user", "content": [{"type": "text", "text": spec.prompt}]},
        "parent_tool_use_id": None,
        "session_id": "",
        "client_composed": True,
    }
    lines = ({"type": "control_request", "request_id": "init", "request": request}, message)
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


class _Parser(Parser):
    def __init__(self) -> None:
        self._lines = Lines()
        self._answer = Answer()
        self._thoughts = Answer()
        self._open = False  # a message has begun and not ended
        self._streamed: set[str] = set()  # kinds of blocks of this message that came as deltas
        self._message_id = ""
        self._session_id: str | None = None
        self._model: str | None = None
        self._result: dict[str, Any] | None = None
        self._status: int | None = None
        self._retry_after_s: float | None = None

    def feed(self, data: bytes) -> list[Content]:
        return [event for item in self._lines.feed(data) for event in self._item(item)]

    def _item(self, item: dict[str, Any]) -> list[Content]:
        if item.get("parent_tool_use_id"):
            return []  # a sub-agent's own talk
        match item.get("type"):
            case "system":
                return self._system(item)
            case "stream_event":
                if "abandoned_blocks" in item:
                    return []  # cut short; its second try, or an interrupt, follows
                return self._stream(part(item, "event"))
            case "assistant":
                return self._assistant(part(item, "message"))
            case "user":
                return [
                    ToolResult(text(b.get("tool_use_id")), _flat(b.get("content")), b.get("is_error") is True)
                    for b in parts(part(item, "message", "content"))
                    if b.get("type") == "tool_result"
                ]
            case "result":
                self._result = item
                usage = _usage(item)
                events = self._close()
                if not self._answer.text and item.get("is_error") is not True:
                    events += self._answer.add(text(item.get("result")), partial=False)
                return [
                    *events,
                    TokenUsage(usage.input_tokens, usage.output_tokens, usage.cached_tokens, usage.reasoning_tokens),
                ]
            case _:
                return []

    def _system(self, item: dict[str, Any]) -> list[Content]:
        match item.get("subtype"):
            case "init":
                self._session_id = text(item.get("session_id")) or None
                self._model = text(item.get("model")) or None
                return [Init(model=self._model, backend_session_id=self._session_id)]
            case "api_retry":
                status = item.get("error_status")
                self._status = status if isinstance(status, int) else None
                wait_s = number(item.get("retry_delay_ms")) / 1000
                self._retry_after_s = wait_s or None
                attempt, most = number(item.get("attempt")), number(item.get("max_retries"))
                why = text(item.get("error")) or "unknown"
                return [Progress(f"the CLI tries again ({attempt}/{most}) in {wait_s:.1f} s: {why}")]
            case "permission_denied":
                return [Progress(f"denied: {text(item.get('tool_name'))}")]
            case _:
                return []

    def _stream(self, event: Any) -> list[Content]:
        match part(event, "type"):
            case "message_start":
                if self._open:  # the one before was cut: this is its second try
                    self._answer.restart()
                    self._thoughts.restart()
                self._open = True
                self._streamed = set()
                self._message_id = text(part(event, "message", "id"))
            case "content_block_delta":
                match part(event, "delta", "type"):
                    case "text_delta":
                        self._streamed.add("text")
                        return self._answer.add(text(part(event, "delta", "text")))
                    case "thinking_delta":
                        self._streamed.add("thinking")
                        return self._think(text(part(event, "delta", "thinking")), partial=True)
                    case _:
                        pass
            case "message_stop":
                return self._close()
            case _:
                pass
        return []

    def _close(self) -> list[Content]:
        self._open = False
        self._thoughts.close()
        return self._answer.close()

    def _think(self, words: str, *, partial: bool) -> list[Content]:
        shown = self._thoughts.add(words)
        return [Thinking(e.text.lstrip("\n"), partial) for e in shown if hasattr(e, "text")]

    def _assistant(self, message: Any) -> list[Content]:
        if part(message, "model") == "<synthetic>":
            return []  # the CLI's own words about an error; the result has them
        events: list[Content] = []
        same = self._open and text(part(message, "id")) == self._message_id
        if not same:  # not streamed: the whole message comes at once, perhaps after a stream that was cut
            if self._open:
                self._answer.restart()
                self._thoughts.restart()
                self._open = False
            self._streamed = set()
        for block in parts(part(message, "content")):
            kind = block.get("type")
            if kind == "tool_use":
                events.append(ToolUse(text(block.get("id")), text(block.get("name")), block.get("input")))
            elif kind == "text" and "text" not in self._streamed:
                events += self._answer.add(text(block.get("text")), partial=False)
            elif kind == "thinking" and "thinking" not in self._streamed:
                events += self._think(text(block.get("thinking")), partial=False)
        if not same:
            events += self._close()
        return events

    def finish(self, exit: Exit) -> tuple[list[Content], Outcome]:
        events = [event for item in self._lines.flush() for event in self._item(item)]
        events += self._close()
        result = self._result
        usage = None if result is None else _usage(result)
        cost = None if result is None else result.get("total_cost_usd")
        return events, Outcome(
            exit_code=exit.code,
            output=self._answer.text,
            usage=usage,
            failure=self._failure(exit),
            backend_session_id=self._session_id or (text(part(result, "session_id")) or None),
            model=self._model,
            turns=None if result is None else number(result.get("num_turns")) or None,
            cost_usd=float(cost) if isinstance(cost, int | float) else None,
        )

    def _failure(self, exit: Exit) -> Failure | None:
        result = self._result
        if result is None:
            return ended("claude", exit.code, exit.stderr or self._lines.last_strange)
        subtype, said = text(result.get("subtype")), text(result.get("result"))
        if subtype == "error_max_turns":
            return Failure("backend_error", "claude reached its limit of turns before it was done", "max_turns")
        if subtype == "error_max_budget_usd":
            return Failure("backend_error", "claude reached its budget before it was done", "max_budget")
        if result.get("is_error") is True or subtype.startswith("error"):
            if subtype == "error_during_execution":
                errors = result.get("errors")
                why = "; ".join(e for e in errors if isinstance(e, str)) if isinstance(errors, list) else ""
                return Failure("backend_error", f"claude was interrupted. {why}".strip(), "interrupted")
            status = result.get("api_error_status")
            known = status if isinstance(status, int) else self._status
            return classify("claude", said, status=known, retry_after_s=self._retry_after_s)
        if subtype != "success":
            return Failure("backend_error", f"claude ended with {subtype or 'no subtype'}: {said}", "failed")
        if exit.code != 0:
            return ended("claude", exit.code, exit.stderr)
        return None


def _usage(result: dict[str, Any]) -> Usage:
    usage = result.get("usage")
    cached = number(part(usage, "cache_read_input_tokens"))
    written = number(part(usage, "cache_creation_input_tokens"))
    return Usage(
        input_tokens=number(part(usage, "input_tokens")) + cached + written,
        output_tokens=number(part(usage, "output_tokens")),
        cached_tokens=cached,
        reasoning_tokens=number(part(usage, "output_tokens_details", "thinking_tokens")),
    )


def _flat(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(text(block.get("text")) for block in parts(content) if block.get("type") == "text")
