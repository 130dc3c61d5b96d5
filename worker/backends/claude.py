"""Claude Code, as observed of 2.1.329: `claude -p` with stream-json in and out."""

from collections.abc import Mapping
from typing import Any

import msgspec

from shared.errors import NotEnforceable
from shared.event import Content, Init, Message, Progress, Thinking, TokenUsage, ToolResult, ToolUse
from shared.host import Capabilities
from shared.run import Failure, Outcome, RunSpec, Usage
from worker.backends.answer import Answer
from worker.backends.base import Backend, Exit, Launch, Parser, Place, Settings
from worker.backends.causes import classify, ended
from worker.backends.claude_input import IMAGES, session_file, session_id, stdin
from worker.backends.lines import Lines, number, part, parts, text
from worker.backends.options import extra, lacking, resolve

PERMISSION = {
    "": "default",
    "default": "default",
    "auto": "acceptEdits",
    "none": "bypassPermissions",
    "always": "dontAsk",
}
_READING = ("Read", "Glob", "Grep", "WebFetch", "WebSearch", "TodoWrite")
EFFORT = {"none": "low", "minimal": "low"}  # it has low, medium, high, xhigh, max
_VALUE_TOOL = "StructuredOutput"  # its way to an answer of a schema; no tool that a caller would know of
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
            options=(
                *("model", "max_turns", "max_tokens", "ephemeral", "resume", "add_dirs"),
                *("history", "schema", "effort", "thinking"),
            ),
            attachments=(*IMAGES, "application/pdf", "text/*"),
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
        argv += ["--verbose", "--include-partial-messages", "--permission-mode", PERMISSION[options.approval]]
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
        if options.effort:
            argv += ["--effort", EFFORT.get(options.effort, options.effort)]
        files = {}
        if spec.resume:
            argv += ["--resume", spec.resume]
        elif spec.history:
            path = f"{place.scratch}/{session_id(spec)}.jsonl"
            files[path] = session_file(spec, place.cwd, options.model)
            argv += ["--resume", path]
            if spec.session_id is not None:
                argv += ["--fork-session"]  # else it goes on in that file, which does not outlive the run
        env = {**base_env, **_SWITCHES}
        if spec.session_id is None and not spec.resume:
            argv += ["--no-session-persistence"]
            env["CLAUDE_CODE_DISABLE_AUTO_MEMORY"] = "1"  # else a folder stays in HOME for each working directory
        argv += [*settings.extra_flags, *extra(spec, settings, _EXTRA)]
        if options.max_tokens:
            env["CLAUDE_CODE_MAX_OUTPUT_TOKENS"] = str(options.max_tokens)
        if options.thinking_tokens is not None:
            # The second is for models that have both ways; the newest think as much as they like in any case.
            env["MAX_THINKING_TOKENS"] = str(options.thinking_tokens)
            env[
                "CLAUDE_CODE_DISABLE_ADAPTIVE_THINKING" if options.thinking_tokens else "CLAUDE_CODE_DISABLE_THINKING"
            ] = "1"
        return Launch(
            argv=tuple(argv),
            env={**env, **settings.env},
            cwd=place.cwd,
            stdin=stdin(spec, options.system_prompt),
            files=files,
            not_enforced=lacking(options, able),
        )

    def kept(self, cli_id: str, environ: Mapping[str, str]) -> tuple[str, ...]:
        home = environ.get("CLAUDE_CONFIG_DIR") or f"{environ.get('HOME', '/')}/.claude"
        return (f"{home}/projects/*/{cli_id}.jsonl",)

    def parser(self, spec: RunSpec) -> Parser:
        return _Parser(to_schema=spec.schema is not None)


class _Parser(Parser):
    """With `to_schema` the answer is the value that the CLI reports at the end; what the model says on its way is no part of it."""

    def __init__(self, *, to_schema: bool) -> None:
        self._to_schema = to_schema
        self._value: str | None = None
        self._value_calls: set[str] = set()
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
        events = self._told(item)
        return [event for event in events if self._counts(event)] if self._to_schema else events

    def _counts(self, event: Content) -> bool:
        match event:
            case ToolUse(id=id, name=name) if name == _VALUE_TOOL:
                self._value_calls.add(id)
                return False
            case ToolResult(id=id):
                return id not in self._value_calls
            case Message(text=said):
                return said is self._value
            case Progress(restart_at=restart_at):
                return restart_at is None
            case _:
                return True

    def _told(self, item: dict[str, Any]) -> list[Content]:
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
                if self._to_schema:
                    events += self._take_value(item)
                elif not self._answer.text and item.get("is_error") is not True:
                    events += self._answer.add(text(item.get("result")), partial=False)
                return [
                    *events,
                    TokenUsage(usage.input_tokens, usage.output_tokens, usage.cached_tokens, usage.reasoning_tokens),
                ]
            case _:
                return []

    def _take_value(self, result: dict[str, Any]) -> list[Content]:
        value = result.get("structured_output")
        if value is None or result.get("is_error") is True or self._value is not None:
            return []
        self._value = msgspec.json.encode(value).decode()
        return [Message(self._value)]

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
        if not self._to_schema:
            events += self._close()
        result = self._result
        usage = None if result is None else _usage(result)
        cost = None if result is None else result.get("total_cost_usd")
        return events, Outcome(
            exit_code=exit.code,
            output=(self._value or "") if self._to_schema else self._answer.text,
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
        if subtype == "error_max_structured_output_retries":
            return _no_value(said)
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
        if self._to_schema and self._value is None:
            return _no_value(said)
        return None


def _no_value(said: str) -> Failure:
    message = f"claude gave no answer of the schema asked for. {said[:2000]}".strip()
    return Failure("backend_error", message, "no_structured_output")


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
