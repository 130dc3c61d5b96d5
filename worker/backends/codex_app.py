"""Codex' other way, as observed of 0.169.0: `codex app-server`, one process for many runs, a thread for each; with deltas.

What is sent for a run (`talk`), which runs it cannot carry (`unfit`), and a parser of what is said of its thread: the
answer to `thread/start` or `thread/resume`, then the notifications.
"""

import base64
import json
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

import msgspec

from shared.event import Content, Init, Message, Progress, Thinking, TokenUsage, ToolResult, ToolUse
from shared.run import Failure, Outcome, RunSpec, Turn, Usage
from worker.backends.answer import Answer
from worker.backends.base import Exit, Launch, Parser, Place, Settings
from worker.backends.causes import classify, ended
from worker.backends.codex import ALWAYS, TOOLS, Codex, Notices, configuration, flags, is_value, this_turn, tool_input
from worker.backends.lines import Lines, number, part, parts, text
from worker.backends.options import resolve
from worker.backends.turns import NOTHING, content, document, image_files, is_text, transcript

_OF_THE_RUN = ("TMPDIR", "TRACEPARENT", "TRACESTATE")  # variables that differ from run to run
_KEYS = ("CODEX_API_KEY", "OPENAI_API_KEY")
_KINDS = {"commandExecution": TOOLS[0], "fileChange": TOOLS[1], "mcpToolCall": TOOLS[2], "webSearch": TOOLS[3]}
_STATUS = {
    "unauthorized": 401,
    "usageLimitExceeded": 429,
    "rateLimitExceeded": 429,
    "modelNotFound": 404,
    "badRequest": 400,
    "serverOverloaded": 529,
}


class Kind(msgspec.Struct, frozen=True):
    """What a process' start has fixed. A run can be served by any of its own kind."""

    argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...]  # sorted, without those of the run

    def __repr__(self) -> str:
        return f"Kind({len(self.argv)} words)"  # there are secrets in the environment

    @property
    def watched(self) -> tuple[str, ...]:
        """Files that a process has read at its start: once they change, it is of yesterday."""
        env = dict(self.env)
        home = env.get("CODEX_HOME") or f"{env.get('HOME', '/')}/.codex"
        return f"{home}/auth.json", f"{home}/config.toml"

    @property
    def logged_in(self) -> bool:
        """Whether its login is the host's, not a key in its environment."""
        return not any(value for name, value in self.env if name in _KEYS)

    def launch(self, place: Place, more: Mapping[str, str]) -> Launch:
        """`more`: variables of the host, over those of the kind."""
        env = {"TMPDIR": f"{place.scratch}/tmp", **dict(self.env), **more}
        return Launch(argv=self.argv, env=env, cwd=place.cwd, stdin=b"")


class Talk(msgspec.Struct, frozen=True):
    """What is said for a run, in this order; the thread's id is added to each but a start."""

    resume: str | None  # the thread to go on with; None: a new one
    thread: dict[str, Any]
    items: list[dict[str, Any]]  # earlier turns
    turn: dict[str, Any]
    kept: bool  # a session's: the thread is to be found by other processes afterwards


class Standing(msgspec.Struct, frozen=True):
    """What the operator's own configuration says, as the process has read it."""

    sandbox: str | None  # of a run that does not say: a mode, or the name of a profile of permissions
    decided: frozenset[str]  # directories that the operator trusts, or has said not to

    @classmethod
    def of(cls, read: Any) -> "Standing":
        """`read`: the answer to `config/read`."""
        origins = part(read, "origins")
        names = origins if isinstance(origins, dict) else {}
        begin, end = "projects.", ".trust_level"
        decided = {name[len(begin) : -len(end)] for name in names if name.startswith(begin) and name.endswith(end)}
        profile = text(part(read, "config", "default_permissions")).removeprefix(":")
        return cls(text(part(read, "config", "sandbox_mode")) or profile or None, frozenset(decided))


def distrusting(talk: Talk, standing: Standing) -> Talk | None:
    """`thread/start` of 0.169.0 trusts a directory for good, where the run may write in it and nobody has decided: it
    writes so into the operator's file, and all that the directory configures (MCP servers, hooks) is started outside of
    the sandbox. `exec` never does, and neither may a run of ours. None: another than its own directory was decided on
    above it, which only a process of its own takes as `exec` does."""
    cwd, config = talk.thread["cwd"], talk.thread["config"]
    if config.get("sandbox_mode", standing.sandbox) in (None, "read-only") or cwd in standing.decided:
        return talk
    if any(str(above) in standing.decided for above in PurePosixPath(cwd).parents):
        return None
    config = {**config, "projects": {cwd: {"trust_level": "untrusted"}}}
    return msgspec.structs.replace(talk, thread={**talk.thread, "config": config})


def unfit(spec: RunSpec, settings: Settings) -> str | None:
    """Why a run cannot be carried in this way."""
    return "extra" if spec.extra or settings.extra_flags else None


def kind(settings: Settings, base_env: Mapping[str, str]) -> Kind:
    env = {name: value for name, value in base_env.items() if name not in _OF_THE_RUN} | dict(settings.env)
    return Kind((*settings.command, "app-server", *flags(ALWAYS)), tuple(sorted(env.items())))


def talk(spec: RunSpec, settings: Settings, place: Place, marks: Mapping[str, str]) -> Talk:
    """`marks`: variables that the run's tools are to have, its TMPDIR among them."""
    options = resolve(spec, settings, Codex().capabilities(as_root=settings.as_root))
    config = configuration(options, place)
    for name, value in marks.items():
        config[f"shell_environment_policy.set.{name}"] = value
    # The process' own TMPDIR is no business of a run: it has one to itself.
    config["sandbox_workspace_write.exclude_tmpdir_env_var"] = True
    config["sandbox_workspace_write.writable_roots"] = [f"{place.scratch}/tmp", *place.add_dirs]
    kept = spec.session_id is not None or spec.resume is not None
    thread: dict[str, Any] = {"cwd": place.cwd, "approvalPolicy": "never", "config": config}
    if options.model:
        thread["model"] = options.model
    if spec.resume:
        thread["excludeTurns"] = True
    else:
        thread["ephemeral"] = not kept
    new = sum(not is_text(found) for found in spec.attachments)
    images = list(image_files(spec, place.scratch))[-new:] if new else []
    said = transcript(msgspec.structs.replace(spec, history=()))
    turn: dict[str, Any] = {
        "input": [*({"type": "localImage", "path": path} for path in images), {"type": "text", "text": _sound(said)}]
    }
    if spec.schema is not None:
        turn["outputSchema"] = spec.schema
    return Talk(spec.resume, thread, [_item(earlier) for earlier in spec.history], turn, kept)


def _item(turn: Turn) -> dict[str, Any]:
    """An earlier turn as the vendor's API has it."""
    kind = "output_text" if turn.role == "assistant" else "input_text"
    pieces: list[dict[str, Any]] = []
    for found in turn.attachments:
        if is_text(found):
            name = json.dumps(found.name or "document")
            pieces.append({"type": kind, "text": _sound(f"<document name={name}>\n{document(found)}\n</document>")})
        else:
            data = base64.b64encode(content(found)).decode()
            pieces.append({"type": "input_image", "image_url": f"data:{found.media_type};base64,{data}"})
    if turn.text or not pieces:
        pieces.append({"type": kind, "text": _sound(turn.text or NOTHING)})
    return {"type": "message", "role": turn.role, "content": pieces}


def _sound(said: str) -> str:
    """Half a pair of surrogates is no text for JSON."""
    return said.encode("utf-8", "replace").decode()


class AppParser(Parser):
    """Text and reasoning as they come; a schema's answer is the last message alone, as it is for `exec`."""

    def __init__(self, spec: RunSpec) -> None:
        self._to_schema = spec.schema is not None
        self._prior = spec.prior_usage
        self._lines = Lines()
        self._answer = Answer()
        self._thoughts = Answer()
        self._open: list[str] = []  # what has come of the message that is not whole yet; joined once
        self._open_thought = False  # whether something has come of one
        self._last: str | None = None  # of the messages to a schema, until it is known whether another follows
        self._thread_id: str | None = None
        self._total: Usage | None = None
        self._failure: Failure | None = None
        self._completed = False
        self._notices = Notices()
        self._turns = 0

    def feed(self, data: bytes) -> list[Content]:
        return [event for item in self._lines.feed(data) for event in self._item(item)]

    def _item(self, line: dict[str, Any]) -> list[Content]:
        params = line.get("params")
        match line.get("method"):
            case None:
                self._thread_id = text(part(line, "result", "thread", "id")) or self._thread_id
                return [Init(backend_session_id=self._thread_id)] if self._thread_id else []
            case "turn/started":
                self._turns += 1
            case "item/agentMessage/delta":
                return self._said(text(part(params, "delta")))
            case "item/reasoning/summaryTextDelta":
                return self._thought(text(part(params, "delta")))
            case "item/reasoning/summaryPartAdded":
                return self._thought("\n") if self._open_thought else []
            case "item/started":
                return self._started(part(params, "item"))
            case "item/completed":
                return self._whole(part(params, "item"))
            case "thread/tokenUsage/updated":
                self._count(part(params, "tokenUsage", "total"))
            case "turn/plan/updated":
                return [Progress("the plan was changed")]
            case "warning":
                return [Progress("warning: " + text(part(params, "message")))]
            case "error":
                return self._trouble(part(params, "error"), retries=part(params, "willRetry") is True)
            case "turn/completed":
                return self._end(part(params, "turn"))
            case _:
                pass
        return []

    # -- the answer

    def _said(self, delta: str) -> list[Content]:
        if self._to_schema:
            return []
        self._open.append(delta)
        return self._answer.add(delta)

    def _message(self, whole: str) -> list[Content]:
        if self._to_schema:
            before, self._last = self._last, whole
            return [Progress(before)] if before else []
        sent, self._open = "".join(self._open), []
        events: list[Content] = []
        if not whole.startswith(sent):  # it was not what it came to: a retry that nobody told of
            self._answer.restart()
            sent = ""
        events += self._answer.add(whole[len(sent) :], partial=bool(sent))
        return [*events, *self._answer.close()]

    def _thought(self, delta: str) -> list[Content]:
        self._open_thought = self._open_thought or bool(delta)
        return _as_thinking(self._thoughts.add(delta))

    def _reasoning(self, item: Any) -> list[Content]:
        summary = part(item, "summary")
        whole = "\n".join(map(text, summary)) if isinstance(summary, list) else ""
        sent = self._open_thought
        self._open_thought, self._thoughts = False, Answer()
        if sent or not whole:
            return []
        return [Thinking(whole)]

    def _value(self) -> list[Content]:
        """The answer, where it is one JSON value."""
        last, self._last = self._last, None
        if not last:
            return []
        if not is_value(last):
            return [Progress(last)]
        return [*self._answer.add(last, partial=False), *self._answer.close()]

    # -- items

    def _started(self, item: Any) -> list[Content]:
        kind = _KINDS.get(text(part(item, "type")))
        return [] if kind is None else [ToolUse(text(part(item, "id")), kind, tool_input(item))]

    def _whole(self, item: Any) -> list[Content]:
        kind, id = part(item, "type"), text(part(item, "id"))
        match kind:
            case "agentMessage":
                return self._message(text(part(item, "text")))
            case "reasoning":
                return self._reasoning(item)
            case "commandExecution":
                failed = part(item, "exitCode") not in (0, None)
                return [ToolResult(id, text(part(item, "aggregatedOutput")), failed)]
            case "fileChange" | "mcpToolCall" | "webSearch":
                told = json.dumps(tool_input(item), ensure_ascii=False)
                return [ToolResult(id, told, part(item, "status") == "failed")]
            case _:
                return []

    def _count(self, total: Any) -> None:
        self._total = Usage(
            number(part(total, "inputTokens")),
            number(part(total, "outputTokens")),
            number(part(total, "cachedInputTokens")),
            number(part(total, "reasoningOutputTokens")),
        )

    # -- what went wrong, and the end

    def _trouble(self, error: Any, *, retries: bool) -> list[Content]:
        """Notices of its own retries, and what ends a turn, which the turn's end says again."""
        said = text(part(error, "message"))
        if not retries:
            return [Progress(said)] if said else []  # as exec shows it
        details = text(part(error, "additionalDetails"))
        words = f"{said} ({details})" if details else said
        status = _status(part(error, "codexErrorInfo"))
        self.hopeless = self._notices.hopeless(said, words, status) or self.hopeless
        if self._open:
            self._answer.restart()
            self._open = []
        if self._open_thought:
            self._thoughts.restart()
            self._open_thought = False
        return [Progress(words)]

    def _end(self, turn: Any) -> list[Content]:
        status = part(turn, "status")
        if status == "completed":
            self._completed = True
            self._total = self._total or Usage()
            return [*self._value(), *self._counted()]
        if status == "interrupted" and self.hopeless is not None:  # that is why
            self._failure = self.hopeless
            return self._counted()
        error = part(turn, "error")
        said = text(part(error, "message")) or ("the turn was interrupted" if status == "interrupted" else "")
        self._failure = classify("codex", said or "it gave no reason", status=_status(part(error, "codexErrorInfo")))
        return self._counted()

    def _counted(self) -> list[Content]:
        used = self._used()
        if used is None:
            return []
        return [TokenUsage(used.input_tokens, used.output_tokens, used.cached_tokens, used.reasoning_tokens)]

    def _used(self) -> Usage | None:
        """Also of a turn that failed: what is not counted here, the thread's next turn would be charged with."""
        return None if self._total is None else this_turn(self._total, self._prior)

    def finish(self, exit: Exit) -> tuple[list[Content], Outcome]:
        events = [event for item in self._lines.flush() for event in self._item(item)]
        events += self._answer.close()
        failure = self._failure
        if failure is None and not self._completed:
            failure = ended("codex", exit.code, exit.stderr) if exit.code == 1 else _crashed(exit)
        elif failure is None and self._to_schema and not self._answer.text:
            failure = Failure("backend_error", "codex gave no answer of the schema asked for", "no_structured_output")
        return events, Outcome(
            exit_code=exit.code,
            output=self._answer.text,
            usage=self._used(),
            failure=failure,
            backend_session_id=self._thread_id,
            turns=self._turns or None,
        )


def _as_thinking(events: list[Content]) -> list[Content]:
    return [Thinking(event.text, is_partial=True) for event in events if isinstance(event, Message)]


def _status(info: Any) -> int | None:
    """The vendor's HTTP status behind a `codexErrorInfo`, where it says one or means one."""
    if isinstance(info, str):
        return _STATUS.get(info)
    if isinstance(info, dict):
        for told in parts(list(info.values())):
            if isinstance(told.get("httpStatusCode"), int):
                return int(told["httpStatusCode"])
    return None


def _crashed(exit: Exit) -> Failure:
    tail = exit.stderr.strip()[-2000:]
    words = "the codex process that carried out this run beside others ended in the middle of it"
    return Failure("backend_error", f"{words}. {tail}".strip(), exit.cause or "crashed")
