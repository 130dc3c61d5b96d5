"""A spare of Claude Code, as observed of 2.1.329: started before its run is known, what makes it that run's, which runs it can be.

A spare is started as a run that asks for nothing. What such a run's launch holds is fixed for good and is the spare's
*kind*: tools, limits of turns and tokens, thinking, whether nothing is asked, whether a session is kept. The rest is
told when the run comes. Its requests to the model are then, but for ids, byte for byte those of a process of its own.

`set_model` is not among what is told: it tries the model with a request of its own. The first `initialize` alone counts.
"""

import json
from collections.abc import Mapping
from typing import Any

import msgspec

from shared.run import RunSpec
from worker.backends.base import Launch, Place, Settings
from worker.backends.claude import EFFORT, PERMISSION, Claude
from worker.backends.options import Options, resolve

READY = "ready"  # the id of what a spare is asked at its start; it answers when it has loaded
_RUN = "CLINVK_RUN"
_OF_THE_RUN = ("TMPDIR", "TRACEPARENT", "TRACESTATE")  # variables that differ from run to run
_PARK = "--await-claim"  # it waits for its directory too

_OWN = ("settings.json", "settings.local.json", ".credentials.json", "CLAUDE.md")
_MANAGED = ("managed-settings.json", "managed-settings.d", "managed-mcp.json", "CLAUDE.md")

_NOWHERE = Place(cwd="/", scratch="/", home="/", own_home="/")


class _State(msgspec.Struct, rename="camel"):
    oauth_account: msgspec.Raw = msgspec.Raw(b"")
    primary_api_key: msgspec.Raw = msgspec.Raw(b"")
    mcp_servers: msgspec.Raw = msgspec.Raw(b"")


_state = msgspec.json.Decoder(_State)


class Kind(msgspec.Struct, frozen=True):
    """What a spare's start has fixed. A run can take any spare of its own kind."""

    argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...]  # sorted, without those of the run

    def __repr__(self) -> str:
        return f"Kind({len(self.argv)} words)"  # there are secrets in the environment

    @property
    def parked(self) -> bool:
        """Whether it is told its directory; otherwise the run is where the spare was started."""
        return _PARK in self.argv

    def launch(self, place: Place) -> Launch:
        """`place` is the spare's own, and becomes that of its run."""
        return Launch(
            argv=self.argv,
            env={**dict(self.env), "TMPDIR": f"{place.scratch}/tmp"},
            cwd=place.cwd,
            stdin=_line(READY, {"subtype": "get_settings"}),
        )


class Orders(msgspec.Struct, frozen=True):
    """What makes a spare a run's. All of `settings` must be answered with success before `message` is said."""

    settings: tuple[tuple[str, bytes], ...]  # (id, line)
    message: bytes


def unfit(spec: RunSpec) -> str | None:
    """A word why the run needs a process of its own; None where a spare can carry it."""
    if spec.resume is not None:
        return "resume"
    if spec.history:
        return "history"
    if spec.add_dirs:
        return "add_dirs"
    return None


def kind_of(spec: RunSpec, settings: Settings, place: Place, env: Mapping[str, str]) -> Kind:
    """Of a run that is not `unfit` and whose own launch has been made, so that all that can be refused has been."""
    options = _options(spec, settings)
    told = not _pinned(spec, settings)
    nothing = RunSpec(
        id="spare",
        tenant="",
        backend=spec.backend,
        prompt="nothing yet",
        model=None if told else options.model,
        effort=None if told else options.effort,
        approval_mode="none" if options.approval == "none" else None,
        sandbox_mode=options.sandbox or None,  # type: ignore[arg-type]  # resolved of the same words
        max_turns=options.max_turns,
        max_tokens=options.max_tokens,
        thinking_tokens=options.thinking_tokens,
        extra=spec.extra,
        session_id=None if spec.session_id is None else "spare",
    )
    plain = msgspec.structs.replace(settings, model=None, system_prompt=None, approval_mode=None, sandbox_mode=None)
    env = {name: value for name, value in env.items() if name not in _OF_THE_RUN}
    launch = Claude().launch(nothing, plain, _NOWHERE, env)
    argv = launch.argv if place.cwd == own_cwd(place) else (*launch.argv, _PARK)
    return Kind(argv, tuple(sorted(launch.env.items())))


def own_cwd(place: Place) -> str:
    """Where a run works that was given no directory: fresh and empty, as the spare's own is."""
    return f"{place.scratch}/work"


def orders(spec: RunSpec, settings: Settings, place: Place, launch: Launch, kind: Kind) -> Orders:
    """`launch` is what the run would be started with alone: the same bytes greet it and ask it."""
    options = _options(spec, settings)
    greeting, _, message = launch.stdin.partition(b"\n")
    env = {_RUN: spec.id, "TRACEPARENT": spec.traceparent, "TRACESTATE": spec.tracestate}
    # For its tools, which are known as the run's so.
    flags: dict[str, Any] = {"env": {name: value for name, value in env.items() if value}}
    if not _pinned(spec, settings):
        if options.model:
            flags["model"] = options.model
        if options.effort:
            flags["effortLevel"] = EFFORT.get(options.effort, options.effort)
    mode = PERMISSION[options.approval]
    started_in = mode if mode == "bypassPermissions" else "default"
    told: list[tuple[str, bytes]] = []
    if kind.parked:  # it would fall back to the default mode
        claim = {"subtype": "claim_session", "cwd": place.cwd, "permission_mode": started_in}
        told.append(("claim", _line("claim", claim)))
    told.append(("flags", _line("flags", {"subtype": "apply_flag_settings", "settings": flags})))
    if mode != started_in:
        told.append(("mode", _line("mode", {"subtype": "set_permission_mode", "mode": mode})))
    told.append(("init", greeting + b"\n"))
    return Orders(tuple(told), message)


def interrupt() -> bytes:
    return _line("interrupt", {"subtype": "interrupt"})


def answered(item: Mapping[str, Any]) -> tuple[str, str | None] | None:
    """(id, why not) where the line is an answer to one of ours; why not is None for a success."""
    if item.get("type") != "control_response":
        return None
    response = item.get("response")
    if not isinstance(response, dict):
        return None
    why = None if response.get("subtype") == "success" else str(response.get("error") or "no reason given")
    return str(response.get("request_id")), why


def watched(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Files that a spare has read at its start: once they change, it is of yesterday."""
    home = environ.get("CLAUDE_CONFIG_DIR") or f"{environ.get('HOME', '/')}/.claude"
    return tuple(f"{home}/{name}" for name in _OWN) + tuple(f"/etc/claude-code/{name}" for name in _MANAGED)


def state_file(environ: Mapping[str, str]) -> str:
    """Where its account and its servers stand among counters: each start changes it."""
    return f"{environ.get('CLAUDE_CONFIG_DIR') or environ.get('HOME', '/')}/.claude.json"


def lasting(data: bytes) -> tuple[bytes, ...]:
    """Of the state file what makes another process of a spare; nothing where it is none."""
    try:
        found = _state.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ()
    return tuple(bytes(getattr(found, name)) for name in _State.__struct_fields__)


def _options(spec: RunSpec, settings: Settings) -> Options:
    return resolve(spec, settings, Claude().capabilities(as_root=settings.as_root))


def _pinned(spec: RunSpec, settings: Settings) -> bool:
    """Flags that nobody here knows may name a model or an effort too; which of two holds, the command line says."""
    return bool(spec.extra or settings.extra_flags)


def _line(id: str, request: dict[str, Any]) -> bytes:
    return json.dumps({"type": "control_request", "request_id": id, "request": request}).encode() + b"\n"
