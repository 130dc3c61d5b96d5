"""Gemini CLI through a resident `gemini --acp`, as observed of 0.61.0: a session per run.

What is fixed when the resident starts is its `Way`: the tools that are offered and the system prompt, for all sessions
(whenever one is made, the prompt of all the others is read anew). Tools that run
commands are in no way offered: what they leave running could not be told from another run's.
"""

import hashlib
import json
import re
import uuid
from collections.abc import Mapping
from typing import Any

import msgspec

from shared.event import Content, Init, Thinking, TokenUsage, ToolResult, ToolUse
from shared.run import Failure, Outcome, RunSpec, Usage
from worker.backends.answer import Answer
from worker.backends.base import Exit, Launch, Parser, Place, Settings
from worker.backends.causes import classify, ended
from worker.backends.gemini import LOGIN, MODEL, own_settings, session_file
from worker.backends.gemini_text import Again
from worker.backends.lines import Lines, number, part, parts, text
from worker.backends.options import Options
from worker.backends.turns import content, document, is_text

LEAST_VERSION = (0, 61, 0)

# Lines that are not the CLI's: whoever drives it adds what the run's session is, and what it has written of it.
SESSION = "clinvk/session"
RECORD = "clinvk/record"

_SHELL = ("run_shell_command", "list_background_processes", "read_background_output", "activate_skill")
_ASKING = ("write_file", "replace", "web_fetch")  # one process a run does not offer them in its default mode
_PLANNING = ("enter_plan_mode",)  # it asks, and says the change of mode in the middle of the answer
_RUNS_OWN = ("HOME", "TMPDIR", "TRACEPARENT", "TRACESTATE")
_LARGE = 4 << 20  # one process a run takes 8 MiB; a resident's loop is everybody's
_COMMAND = re.compile(r"[\s\ufeff]*[/$]")
_TOOL_ID = re.compile(r"(.+)__\1_\d+_\d+", re.DOTALL)
_DENIED = "this mode denies what needs an approval"


class Way(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of resident."""

    edits: bool = False  # files of the workspace may be written
    system: str | None = None  # the system prompt

    def __repr__(self) -> str:
        return f"Way(edits={self.edits}, system={'***' if self.system else None})"

    @property
    def mode(self) -> str:
        """As `session/set_mode` calls it."""
        return "autoEdit" if self.edits else "default"

    @property
    def excluded(self) -> tuple[str, ...]:
        return (*_SHELL, *_PLANNING, *(() if self.edits else _ASKING))


def way(options: Options) -> Way:
    return Way(edits=options.approval == "auto" and options.sandbox != "read-only", system=options.system_prompt)


def reason_against(spec: RunSpec, options: Options, settings: Settings) -> str | None:
    """A word for why this run needs a process of its own; None where a resident can carry it out."""
    if options.approval == "none" and options.sandbox != "read-only":
        return "shell"
    if spec.resume:
        return "resume"
    if spec.add_dirs or spec.extra or settings.extra_flags or settings.allowed_tools or options.max_turns:
        return "options"
    if _size(spec) > _LARGE:
        return "size"
    said = "".join(block.get("text", "") for block in _leading(prompt(spec)))
    return "command" if _COMMAND.match(said) else None


class Fixed(msgspec.Struct, frozen=True, kw_only=True):
    """All that a resident is started with."""

    way: Way
    command: tuple[str, ...]
    env: tuple[tuple[str, str], ...]
    home: str  # the operator's
    apart: str = ""  # a tenant whose runs work where another's may: models can read what is kept of a directory

    def __repr__(self) -> str:
        return f"Fixed({self.way!r})"  # there are secrets in the environment


def fixed(way: Way, settings: Settings, place: Place, base_env: Mapping[str, str], apart: str = "") -> Fixed:
    """`place` and `base_env` are a run's; nothing that is the run's own is kept of them."""
    env = {**base_env, **settings.env}
    return Fixed(
        way=way,
        command=settings.command,
        env=tuple(sorted((name, value) for name, value in env.items() if name not in _RUNS_OWN)),
        home=place.home,
        apart=apart,
    )


def launch(fixed: Fixed, place: Place) -> Launch:
    """`place` is the resident's own."""
    env = dict(fixed.env)
    own = f"{place.own_home}/.gemini"
    made = own_settings(env) | {"tools": {"exclude": list(fixed.way.excluded)}}
    files = {f"{own}/settings.json": json.dumps(made).encode()}
    env |= {
        "HOME": place.own_home,
        "TMPDIR": f"{place.scratch}/tmp",
        "GEMINI_CLI_NO_RELAUNCH": "1",
        "GEMINI_CLI_TRUST_WORKSPACE": "true",
        "NO_COLOR": "1",
    }
    system = fixed.way.system
    return Launch(
        argv=(*fixed.command, "--acp", "--skip-trust", "-m", MODEL),
        env=env,
        cwd=place.cwd,
        stdin=b"",
        files=files,
        copies={f"{own}/{name}": f"{fixed.home}/.gemini/{name}" for name in LOGIN},
        # It is read anew for each session, and outlives the run that brought it: which may be erased.
        unfiled={} if system is None else {"GEMINI_SYSTEM_MD": system.encode("utf-8", "replace")},
    )


def _size(spec: RunSpec) -> int:
    turns = sum(len(turn.text) + sum(len(a.data) for a in turn.attachments) for turn in spec.history)
    return turns + len(spec.prompt) + sum(len(a.data) for a in spec.attachments)


def _leading(blocks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The texts that it joins to see whether they are a command of its own."""
    first = next((index for index, block in enumerate(blocks) if block["type"] != "text"), len(blocks))
    return blocks[:first]


def prompt(spec: RunSpec) -> list[dict[str, Any]]:
    """The content of `session/prompt`. Raises: InvalidRequest for an attachment that is no base64."""
    blocks: list[dict[str, Any]] = []
    for found in spec.attachments:
        if is_text(found):
            blocks.append({"type": "text", "text": f"{found.name or 'document'}:\n\n{document(found)}\n\n"})
        else:  # an image is what it calls all that the model is given as it is
            content(found)
            blocks.append({"type": "image", "mimeType": found.media_type.lower(), "data": found.data})
    said = spec.prompt.encode("utf-8", "replace").decode()
    return [*blocks, {"type": "text", "text": said}]


def earlier(spec: RunSpec, cwd: str) -> tuple[str, bytes] | None:
    """A session that holds the history, to be loaded: its id and its file. Raises: InvalidRequest."""
    if not spec.history:
        return None
    id = str(uuid.uuid5(uuid.NAMESPACE_OID, spec.id))
    # It goes on writing in the file, and takes none up again that does not say whose it is.
    return id, session_file(msgspec.structs.replace(spec, attachments=()), id, _hash(cwd))


def chat_file(id: str) -> str:
    """A name under which a session is found and that no session made today has: it would write into that one."""
    return f"session-2000-01-01T00-00-{id[:8]}.json"


def told_again(data: bytes) -> int:
    """How many messages it says again when it loads such a file."""
    return len(parts(part(msgspec.json.decode(data), "messages")))


def project(cwd: str) -> str:
    """The name under which it keeps what belongs to a directory; one that it takes where a marker says so."""
    return "p-" + _hash(cwd)[:24]


def _hash(cwd: str) -> str:
    return hashlib.sha256(cwd.encode("utf-8", "surrogateescape")).hexdigest()


def permission(request: Mapping[str, Any]) -> dict[str, Any]:
    """The answer to `session/request_permission`: what the mode permits is never asked."""
    offered = [text(option.get("optionId")) for option in parts(part(request, "params", "options"))]
    if "cancel" in offered:
        return {"outcome": {"outcome": "selected", "optionId": "cancel"}}
    return {"outcome": {"outcome": "cancelled"}}


class Record(msgspec.Struct, frozen=True):
    """What it has written of a session, as far as it is this run's."""

    usage: Usage
    complete: bool  # whether the model's last word is there


def record(data: bytes) -> Record:
    """Reads the file of a session."""
    messages = messages_of(data)
    tokens = [found["tokens"] for found in messages if isinstance(found.get("tokens"), dict)]

    def total(name: str) -> int:
        return sum(number(part(counted, name)) for counted in tokens)

    last = messages[-1] if messages else {}
    complete = last.get("type") == "gemini" and bool(last.get("content")) and not last.get("toolCalls")
    usage = Usage(total("input"), total("output") + total("thoughts"), total("cached"), total("thoughts"))
    return Record(usage, complete)


def messages_of(data: bytes) -> list[dict[str, Any]]:
    """The messages of a session's file, each as it was written last."""
    kept: dict[str, dict[str, Any]] = {}
    lines = Lines()
    for item in [*lines.feed(data), *lines.flush()]:
        if isinstance(part(item, "$set", "messages"), list):
            kept = {text(found.get("id")): found for found in parts(item["$set"]["messages"])}
        elif "$rewindTo" in item:
            ids = list(kept)
            if item["$rewindTo"] in ids:
                kept = {id: kept[id] for id in ids[: ids.index(item["$rewindTo"])]}
        elif isinstance(item.get("id"), str):
            kept[item["id"]] = item
    return list(kept.values())


def session_line(id: str) -> bytes:
    return msgspec.json.encode({"method": SESSION, "params": {"sessionId": id}}) + b"\n"


def record_line(found: Record) -> bytes:
    return msgspec.json.encode({"method": RECORD, "params": found}) + b"\n"


def stamped(line: bytes, at: float) -> bytes:
    """A line with the second in which it came, on any clock: only a pause shows where a retry begins."""
    return b'{"at":%.3f,' % at + line[1:] if line[:1] == b"{" and line[1:2] == b'"' else line


class AcpParser(Parser):
    """Of the lines of one session, from its prompt on; the answer to the prompt is the last."""

    def __init__(self, model: str | None) -> None:
        self._lines = Lines()
        self._answer = Answer()
        self._again = Again(self._answer)
        self._model = model
        self._session_id: str | None = None
        self._record: Record | None = None
        self._end: dict[str, Any] | None = None
        self._thought = False  # whether the last that came was one
        self._used: set[str] = set()
        self._turns = 0

    def feed(self, data: bytes) -> list[Content]:
        return [event for item in self._lines.feed(data) for event in self._item(item)]

    def _item(self, item: dict[str, Any]) -> list[Content]:
        match item.get("method"):
            case "session/update":
                return self._update(part(item, "params", "update"), item.get("at"))
            case "session/request_permission":
                call = part(item, "params", "toolCall")
                return [*self._tool(call), ToolResult(text(part(call, "toolCallId")), _DENIED, is_error=True)]
            case method if method == SESSION:
                self._session_id = text(part(item, "params", "sessionId")) or None
                return [Init(model=self._model, backend_session_id=self._session_id)]
            case method if method == RECORD:
                try:
                    self._record = msgspec.convert(item.get("params"), Record)
                except msgspec.ValidationError:
                    self._record = None
                return []
            case None if "result" in item or "error" in item:
                return self._ended(item)
            case _:
                return []

    def _update(self, update: Any, at: Any) -> list[Content]:
        kind = part(update, "sessionUpdate")
        said = text(part(update, "content", "text"))
        thought, self._thought = self._thought, kind == "agent_thought_chunk"
        match kind:
            case "agent_message_chunk":
                return self._again.add(said, float(at) if isinstance(at, int | float) else 0.0)
            case "agent_thought_chunk":
                words = said.removeprefix("****\n")  # what has no subject
                return [Thinking(("\n\n" if thought else "") + words)] if words else []
            case "tool_call":
                return self._tool(update)
            case "tool_call_update":
                began = self._tool(update)
                if part(update, "status") not in ("completed", "failed"):
                    return began
                shown = [text(part(found, "content", "text")) for found in parts(part(update, "content"))]
                failed = part(update, "status") == "failed"
                return [*began, ToolResult(text(part(update, "toolCallId")), "\n".join(filter(None, shown)), failed)]
            case _:
                return []

    def _tool(self, call: Any) -> list[Content]:
        """Its beginning, which comes in one of three ways."""
        id = text(part(call, "toolCallId"))
        if id in self._used:
            return []
        self._used.add(id)
        self._turns += 1
        made = _TOOL_ID.fullmatch(id)
        paths = [text(found.get("path")) for found in parts(part(call, "locations"))]
        given = {"title": text(part(call, "title")), "paths": paths}
        name = made.group(1) if made else text(part(call, "kind")) or "tool"
        return [*self._again.close(), ToolUse(id, name, {key: value for key, value in given.items() if value})]

    def _ended(self, item: dict[str, Any]) -> list[Content]:
        self._end = item
        events = self._again.release()
        if (used := self._usage()) is None:
            return events
        return [*events, TokenUsage(used.input_tokens, used.output_tokens, used.cached_tokens, used.reasoning_tokens)]

    def _quota(self) -> Usage:
        """Its own count, without thoughts and what was cached; of requests that came to their end."""
        counted = part(self._end, "result", "_meta", "quota", "token_count")
        return Usage(number(part(counted, "input_tokens")), number(part(counted, "output_tokens")))

    def _usage(self) -> Usage | None:
        """Of a turn that came to its own end it is told even where it is nothing."""
        used = self._quota() if self._record is None else self._record.usage
        cut_short = self._end is None or part(self._end, "result", "stopReason") == "cancelled"
        return None if cut_short and used == Usage() else used

    def finish(self, exit: Exit) -> tuple[list[Content], Outcome]:
        events = [event for item in self._lines.flush() for event in self._item(item)]
        events += self._again.release()
        return events, Outcome(
            exit_code=exit.code,
            output=self._answer.text,
            usage=self._usage(),
            failure=self._failure(exit),
            backend_session_id=self._session_id,
            model=self._model,
            turns=self._turns + 1,
        )

    def _failure(self, exit: Exit) -> Failure | None:
        end = self._end
        if end is None and exit.cause:
            words = "the gemini process that carried out this run beside others was ended in the middle of it"
            return Failure("backend_error", f"{words}. {exit.stderr}".strip(), exit.cause)
        if end is None:
            return ended("gemini", exit.code, exit.stderr)
        if "error" in end:
            return _refused(end["error"])
        match part(end, "result", "stopReason"):
            case "end_turn" if self._whole() and exit.code == 0:
                return None
            case "end_turn":  # so it calls an answer, too, that broke off
                return Failure("backend_error", "gemini's answer broke off before its end", "stream_cut")
            case "max_turn_requests":
                said = "gemini took the model's text for a loop and stopped"
                return Failure("backend_error", said, "loop_detected")
            case "max_tokens":
                said = "gemini: the conversation does not fit the model's context any more"
                return Failure("backend_error", said, "bad_request")
            case "cancelled":
                return Failure("backend_error", "gemini was interrupted", "interrupted")
            case other:
                return Failure("backend_error", f"gemini stopped: {text(other) or 'it gave no reason'}", "failed")

    def _whole(self) -> bool:
        counted = self._quota().input_tokens
        if self._record is None:
            return counted > 0
        return self._record.complete and counted >= self._record.usage.input_tokens


def _refused(error: Any) -> Failure:
    """Its code is the vendor's status, and 500 where it knows none."""
    said, code = text(part(error, "message")), part(error, "code")
    status = code if isinstance(code, int) and 400 <= code < 600 else None
    try:
        inner = part(msgspec.json.decode(said), "error")
    except (msgspec.DecodeError, RecursionError):
        inner = None
    if message := text(part(inner, "message")):
        return classify("gemini", message, status=status)
    said = "; ".join(filter(None, (said, text(part(error, "data", "details")))))
    if status == 500:
        known = classify("gemini", said)
        return classify("gemini", said, status=500) if known.cause == "failed" else known
    return classify("gemini", said, status=status)
