"""Echo: no CLI and no login, but a real child through the same queue, worker and relay; a first try and a canary."""

import json
from collections.abc import Mapping

from shared.errors import InvalidRequest, UnsupportedParameter
from shared.event import Content, Init, Message, Thinking
from shared.host import Capabilities
from shared.run import Failure, Outcome, RunSpec, Usage
from worker.backends.base import Backend, Exit, Launch, Parser, Place, Settings
from worker.backends.lines import Lines, number, text
from worker.backends.options import refuse

_ALL = ("default", "auto", "none", "always")
_EXTRA = ("--delay-ms=", "--exit-code=", "--think", "--hang", "--history")


class Echo(Backend):
    name = "echo"
    default_command = ()  # the worker fills in its own Python and echo_cli.py

    def capabilities(self, *, as_root: bool) -> Capabilities:  # noqa: ARG002  # the same for root
        modes: dict[str, tuple[str, ...]] = dict.fromkeys(("", "read-only", "workspace", "full"), _ALL)
        options = ("ephemeral", "resume", "model", "add_dirs", "history")
        return Capabilities(modes=modes, options=options, extra=_EXTRA)

    def launch(self, spec: RunSpec, settings: Settings, place: Place, base_env: Mapping[str, str]) -> Launch:
        refuse(spec, self.capabilities(as_root=settings.as_root))
        for index, flag in enumerate(spec.extra):
            name, equals, value = flag.partition("=")
            if name + equals not in (*_EXTRA, *settings.allow_extra):
                raise UnsupportedParameter(f"echo has no flag {flag!r}", field=f"extra[{index}]")
            if equals and not value.isdecimal():
                raise InvalidRequest(f"{name} takes a whole number, not {value!r}", field=f"extra[{index}]")
        lacks = [name for name in ("max_turns", "max_tokens", "effort") if getattr(spec, name) is not None]
        lacks += ["thinking"] if spec.thinking_tokens is not None else []
        flags = (*settings.extra_flags, *spec.extra)
        earlier = b""
        if "--history" in flags:  # one line of JSON before the prompt
            earlier = json.dumps([[turn.role, turn.text] for turn in spec.history]).encode() + b"\n"
        return Launch(
            argv=(*settings.command, *flags),
            env={**base_env, **settings.env},
            cwd=place.cwd,
            stdin=earlier + spec.prompt.encode("utf-8", "surrogatepass"),
            not_enforced=tuple(lacks),
        )

    def parser(self, spec: RunSpec) -> Parser:  # noqa: ARG002  # the interface
        return _Parser()


class _Parser(Parser):
    def __init__(self) -> None:
        self._lines = Lines()
        self._said: list[str] = []
        self._usage: Usage | None = None

    def feed(self, data: bytes) -> list[Content]:
        events: list[Content] = []
        for item in self._lines.feed(data):
            match item.get("type"):
                case "init":
                    events.append(Init(model=text(item.get("model"))))
                case "thinking":
                    events.append(Thinking(text(item.get("text"))))
                case "text":
                    self._said.append(text(item.get("text")))
                    events.append(Message(self._said[-1], is_partial=True))
                case "result":
                    self._usage = Usage(number(item.get("input_tokens")), number(item.get("output_tokens")))
                case _:
                    pass
        return events

    def finish(self, exit: Exit) -> tuple[list[Content], Outcome]:
        events = self.feed(b"\n")
        failure = None
        if exit.code != 0:
            failure = Failure(
                "backend_error", f"echo ended with exit code {exit.code}: {exit.stderr.strip()}", "crashed"
            )
        elif self._usage is None:
            failure = Failure("backend_error", "echo ended without its final event", "no_final_event")
        output = "".join(self._said)
        return events, Outcome(
            exit_code=exit.code, output=output, usage=self._usage, failure=failure, model="echo-1", turns=1
        )
