"""Codex CLI, as observed of 0.169.0: `codex exec --json`, whole messages."""

import glob
import json
from collections.abc import Mapping
from typing import Any

import msgspec

from shared.event import Content, Init, Message, Progress, Thinking, TokenUsage, ToolResult, ToolUse
from shared.host import Capabilities
from shared.run import Failure, Outcome, RunSpec, Usage
from worker.backends.base import Backend, Exit, Launch, Parser, Place, Repair, Settings
from worker.backends.causes import classify, ended
from worker.backends.lines import Lines, number, part, text
from worker.backends.options import Options, extra, lacking, resolve
from worker.backends.turns import image_files, transcript

_SANDBOX = {"read-only": "read-only", "workspace": "workspace-write", "full": "danger-full-access"}
_WAITS = 3  # "waiting for network": it would wait for ever
_EFFORT = {"none": "low", "minimal": "low"}  # its models have low, medium, high, xhigh, max
TOOLS = ("command_execution", "file_change", "mcp_tool_call", "web_search")
# What each of its processes is told, whatever it carries out.
ALWAYS: dict[str, Any] = {
    "approval_policy": "never",  # nobody is there to be asked; the sandbox decides
    "analytics.enabled": False,
    "features.plugins": False,
    "features.apps": False,
    "check_for_update_on_startup": False,
    # A picture of the login shell for each thread: 15 ms of CPU, for a shell that few runs ask for twice.
    "features.shell_snapshot": False,
    # With these off its requests are the same to the byte, and 9 ms of CPU are saved for each thread.
    "features.skill_search": False,
    "features.skill_mcp_dependency_install": False,
    "features.guardian_approval": False,
    # Its tools would see every variable of the process, keys included.
    "shell_environment_policy.inherit": "core",
}


class Codex(Backend):
    name = "codex"
    default_command = ("codex",)
    npm_package = "@openai/codex"
    vendor_env = ("OPENAI_API_KEY", "OPENAI_BASE_URL", "CODEX_HOME", "CODEX_API_KEY")

    def capabilities(self, *, as_root: bool) -> Capabilities:  # noqa: ARG002  # its sandbox works for root too
        every = ("default", "auto", "none", "always")
        return Capabilities(
            modes={"": every, "read-only": every, "workspace": every, "full": every},
            system_prompt=("replace",),
            options=("model", "ephemeral", "resume", "add_dirs", "schema", "effort"),
            attachments=("image/png", "image/jpeg", "image/gif", "image/webp", "text/*"),
        )

    def launch(self, spec: RunSpec, settings: Settings, place: Place, base_env: Mapping[str, str]) -> Launch:
        able = self.capabilities(as_root=settings.as_root)
        options = resolve(spec, settings, able)
        config = configuration(options, place)
        images = image_files(spec, place.scratch)
        files = dict(images)
        if options.system_prompt is not None:
            files[config["model_instructions_file"]] = options.system_prompt.encode("utf-8", "replace")
        argv = [*settings.command, "exec", "--json", "--skip-git-repo-check", *flags(config)]
        if options.model:
            argv += ["-m", options.model]
        if spec.schema is not None:
            path = f"{place.scratch}/schema.json"
            files[path] = json.dumps(spec.schema).encode()
            argv += [f"--output-schema={path}"]
        argv += [f"--image={path}" for path in images]  # without the = it takes all that follows for images
        if spec.session_id is None and not spec.resume:
            argv += ["--ephemeral"]
        argv += [*settings.extra_flags, *extra(spec, settings, able.extra)]
        if spec.resume:
            argv += ["resume", spec.resume]
        return Launch(
            argv=(*argv, "-"),
            env={**base_env, **settings.env},
            cwd=place.cwd,
            stdin=transcript(spec).encode("utf-8", "replace"),  # invalid UTF-8 on its stdin is an error
            files=files,
            repair=_taken_up(spec.resume, settings, {**base_env, **settings.env}) if spec.resume else None,
            not_enforced=lacking(options, able),
        )

    def kept(self, cli_id: str, environ: Mapping[str, str]) -> tuple[str, ...]:
        home = _home(environ)
        return (f"{home}/sessions/*/*/*/rollout-*{cli_id}.jsonl", f"{home}/{_aside(cli_id)}")

    def databases(self, environ: Mapping[str, str]) -> str:
        """Its prompts, titles and answers stand there too, beside the files that they were read from."""
        home = environ.get("CODEX_SQLITE_HOME") or environ.get("CODEX_HOME") or f"{environ.get('HOME', '/')}/.codex"
        return f"{home}/*.sqlite"

    def parser(self, spec: RunSpec) -> Parser:
        return _Parser(spec.prior_usage, to_schema=spec.schema is not None)


def _home(environ: Mapping[str, str]) -> str:
    return environ.get("CODEX_HOME") or f"{environ.get('HOME', '/')}/.codex"


def _aside(thread: str) -> str:
    return f"archived_sessions/rollout-*{glob.escape(thread)}.jsonl"


def _taken_up(thread: str, settings: Settings, env: Mapping[str, str]) -> Repair:
    """A process of many runs lays a thread aside and takes it up again after each turn; killed in between, it left it
    where no run finds it."""
    return Repair(f"{glob.escape(_home(env))}/{_aside(thread)}", (*settings.command, "unarchive", thread))


def configuration(options: Options, place: Place) -> dict[str, Any]:
    """What its configuration is to say for this run, by dotted names."""
    config = dict(ALWAYS)
    sandbox = _SANDBOX.get(options.sandbox) or ("workspace-write" if options.approval == "auto" else None)
    if sandbox:
        config["sandbox_mode"] = sandbox
    if place.add_dirs:
        config["sandbox_workspace_write.writable_roots"] = list(place.add_dirs)
    if options.effort:
        config["model_reasoning_effort"] = _EFFORT.get(options.effort, options.effort)
    if options.system_prompt is not None:
        config["model_instructions_file"] = f"{place.scratch}/instructions.md"
    return config


def flags(config: Mapping[str, Any]) -> list[str]:
    return [word for name, value in config.items() for word in ("-c", f"{name}={json.dumps(value)}")]  # TOML's values


def this_turn(total: Usage, prior: Usage | None) -> Usage:
    """What it reports is the thread's sum."""
    before = prior or Usage()
    return Usage(
        max(total.input_tokens - before.input_tokens, 0),
        max(total.output_tokens - before.output_tokens, 0),
        max(total.cached_tokens - before.cached_tokens, 0),
        max(total.reasoning_tokens - before.reasoning_tokens, 0),
    )


class Notices:
    """Of its own retries, none fatal by itself; which of them mean that it would go on for ever."""

    def __init__(self) -> None:
        self._waits = 0

    def hopeless(self, said: str, words: str, status: int | None) -> Failure | None:
        """`words`: what a caller is told. `status`: the vendor's, where it is known."""
        if "waiting for network" in said:
            self._waits += 1
            return classify("codex", words) if self._waits >= _WAITS else None
        if said.startswith("Reconnecting") and status == 401:
            return classify("codex", words, status=401)
        return None


def is_value(answer: str) -> bool:
    """Whether an answer to a schema is one JSON value."""
    try:
        msgspec.json.decode(answer)
    except (msgspec.DecodeError, RecursionError):
        return False
    return True


class _Parser(Parser):
    """With `to_schema` the answer is the last message alone; those before it are how the model came to it."""

    def __init__(self, prior: Usage | None, *, to_schema: bool) -> None:
        self._to_schema = to_schema
        self._last: str | None = None  # of the messages, until it is known whether another follows
        self._lines = Lines()
        self._prior = prior
        self._said: list[str] = []
        self._thread_id: str | None = None
        self._usage: Usage | None = None
        self._failed: str | None = None
        self._completed = False
        self._notices = Notices()
        self._turns = 0

    def feed(self, data: bytes) -> list[Content]:
        return [event for item in self._lines.feed(data) for event in self._item(item)]

    def _item(self, item: dict[str, Any]) -> list[Content]:
        match item.get("type"):
            case "thread.started":
                self._thread_id = text(item.get("thread_id")) or None
                return [Init(backend_session_id=self._thread_id)]
            case "turn.started":
                self._turns += 1
            case "item.started":
                return self._started(item.get("item"))
            case "item.completed":
                return self._completed_item(item.get("item"))
            case "turn.completed":
                self._completed = True
                self._usage = used = self._this_turn(item.get("usage"))
                return [
                    *self._value(),
                    TokenUsage(used.input_tokens, used.output_tokens, used.cached_tokens, used.reasoning_tokens),
                ]
            case "turn.failed":
                self._failed = text(part(item, "error", "message")) or "it gave no reason"
            case "error":
                return self._trouble(text(item.get("message")))
            case _:
                pass
        return []

    def _trouble(self, message: str) -> list[Content]:
        status = 401 if "status 401" in message else None
        self.hopeless = self._notices.hopeless(message, message, status) or self.hopeless
        return [Progress(message)]

    def _value(self) -> list[Content]:
        """The answer, where it is one JSON value."""
        last, self._last = self._last, None
        if not last:
            return []
        if not is_value(last):
            return [Progress(last)]
        self._said.append(last)
        return [Message(last)]

    @staticmethod
    def _started(item: Any) -> list[Content]:
        kind = part(item, "type")
        if kind not in TOOLS:
            return []
        return [ToolUse(text(part(item, "id")), str(kind), tool_input(item))]

    def _completed_item(self, item: Any) -> list[Content]:
        kind, id = part(item, "type"), text(part(item, "id"))
        match kind:
            case "agent_message":
                said = text(part(item, "text"))
                if self._to_schema:
                    before, self._last = self._last, said
                    return [Progress(before)] if before else []
                if said and self._said:
                    said = "\n\n" + said
                self._said.append(said)
                return [Message(said)] if said else []
            case "reasoning":
                return [Thinking(text(part(item, "text")))]
            case "error":
                return [Progress("warning: " + text(part(item, "message")))]
            case "todo_list":
                return [Progress("the plan was changed")]
            case "command_execution":
                code = part(item, "exit_code")
                return [ToolResult(id, text(part(item, "aggregated_output")), code not in (0, None))]
            case "file_change" | "mcp_tool_call" | "web_search":
                failed = part(item, "status") == "failed"
                return [ToolResult(id, json.dumps(tool_input(item), ensure_ascii=False), failed)]
            case _:
                return []

    def _this_turn(self, usage: Any) -> Usage:
        return this_turn(
            Usage(
                number(part(usage, "input_tokens")),
                number(part(usage, "output_tokens")),
                number(part(usage, "cached_input_tokens")),
                number(part(usage, "reasoning_output_tokens")),
            ),
            self._prior,
        )

    def finish(self, exit: Exit) -> tuple[list[Content], Outcome]:
        events = [event for item in self._lines.flush() for event in self._item(item)]
        failure: Failure | None = None
        if self._failed is not None:
            failure = classify("codex", self._failed)
        elif not self._completed:
            failure = ended("codex", exit.code, exit.stderr)
        elif exit.code != 0:
            failure = ended("codex", exit.code, exit.stderr)
        elif self._to_schema and not self._said:
            failure = Failure("backend_error", "codex gave no answer of the schema asked for", "no_structured_output")
        return events, Outcome(
            exit_code=exit.code,
            output="".join(self._said),
            usage=self._usage,
            failure=failure,
            backend_session_id=self._thread_id,
            turns=self._turns or None,
        )


def tool_input(item: Any) -> dict[str, Any]:
    if not isinstance(item, dict):
        return {}
    known = ("command", "changes", "server", "tool", "arguments", "query", "result", "error")
    return {name: item[name] for name in known if name in item}
