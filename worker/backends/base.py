"""What every backend gives: how to start its CLI for a run, and a pure parser of what it prints.

A backend is pure: it reads no clock, no environment and no file, and starts nothing. All that it needs stands in
the arguments; the files it wants written before the start are named in the `Launch`.
"""

import abc
from collections.abc import Mapping
from typing import Literal

import msgspec

from shared.event import Content
from shared.host import Capabilities
from shared.run import Failure, Outcome, RunSpec


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """The directories of one run on this host; all exist and all but a caller's `workdir` are private (0700)."""

    cwd: str  # where the CLI works: the caller's workdir, the session's or a fresh one
    scratch: str  # removed after the run: files for the CLI, its TMPDIR is `tmp` below it
    home: str  # the operator's HOME, where claude and codex have their login
    own_home: str  # a HOME of the run's or session's own, empty at first (gemini)
    add_dirs: tuple[str, ...] = ()  # resolved and allowed


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """A backend's configuration on this host, joined with the host's general defaults (`unified_flags`)."""

    command: tuple[str, ...]  # the CLI, resolved: absolute path first
    model: str | None = None
    system_prompt: str | None = None
    approval_mode: str | None = None
    sandbox_mode: str | None = None
    max_turns: int | None = None
    max_tokens: int | None = None
    allowed_tools: tuple[str, ...] = ()  # empty: the CLI's own
    extra_flags: tuple[str, ...] = ()  # the operator's, passed as they are
    env: Mapping[str, str] = {}  # set for this CLI
    as_root: bool = False  # whether the worker runs as root
    allow_extra: tuple[str, ...] = ()  # flags the operator lets callers pass beyond the built-in list


class Repair(msgspec.Struct, frozen=True):
    """Where a file matches the pattern (glob), the command puts right what another process of the CLI left half done."""

    pattern: str
    argv: tuple[str, ...]


class Launch(msgspec.Struct, frozen=True, kw_only=True):
    """All that is needed to start a CLI. A prompt is never in `argv`."""

    argv: tuple[str, ...]
    env: Mapping[str, str]  # the whole environment, marker not included
    cwd: str
    stdin: bytes
    files: Mapping[str, bytes] = {}  # absolute path -> content, written with mode 0600 before the start
    copies: Mapping[str, str] = {}  # absolute target -> source, copied where the source exists (a login)
    # Name in `env` -> what it can read at the path that is put there: on no disk, and gone with the process.
    unfiled: Mapping[str, bytes] = {}
    stdout: Literal["pipe", "file"] = "pipe"  # file: the CLI loses the end of its output on a pipe
    repair: Repair | None = None  # before the start
    not_enforced: tuple[str, ...] = ()  # options asked for that this CLI has nothing for


class Exit(msgspec.Struct, frozen=True, kw_only=True):
    """How the child ended. `code` is negative for a signal; `stderr` is the end of what it wrote there.

    `cause`: of the run's failure, where whoever kept the child has ended it for what it did; `stderr` is then why, in
    words of ours."""

    code: int
    stderr: str = ""
    cause: str = ""


class Parser(abc.ABC):
    """Reads one run's stdout. Fed whole, by line or by single bytes it says the same.

    `hopeless` is set where the CLI would go on trying for ever what cannot work: the run is to be ended so.
    """

    hopeless: Failure | None = None

    @abc.abstractmethod
    def feed(self, data: bytes) -> list[Content]:
        """The events that these bytes complete. Never raises for what a CLI may print; never `Error` or `Done`."""

    @abc.abstractmethod
    def finish(self, exit: Exit) -> tuple[list[Content], Outcome]:
        """Events still held back, and the outcome. Never a success without the CLI's own word for it."""


class Backend(abc.ABC):
    """One agent CLI. `vendor_env` are name patterns (fnmatch) of the host's variables that this CLI may see."""

    name: str
    default_command: tuple[str, ...]
    npm_package: str | None = None  # its version is read from the package.json beside the binary
    vendor_env: tuple[str, ...] = ()
    own_home = False  # whether it works in a HOME of the run's or session's own

    @abc.abstractmethod
    def capabilities(self, *, as_root: bool) -> Capabilities: ...

    @abc.abstractmethod
    def launch(self, spec: RunSpec, settings: Settings, place: Place, base_env: Mapping[str, str]) -> Launch:
        """`base_env` is the minimal environment (PATH, HOME, LANG, TERM, TMPDIR, and `vendor_env` of the host).

        Raises: UnsupportedParameter, NotEnforceable, InvalidRequest for what this CLI cannot do or hold.
        """

    def kept(self, cli_id: str, environ: Mapping[str, str]) -> tuple[str, ...]:  # noqa: ARG002  # for those that keep any
        """Patterns (glob) of the files that the CLI keeps of a session outside its own directories; `environ` is the
        worker's."""
        return ()

    def databases(self, environ: Mapping[str, str]) -> str | None:  # noqa: ARG002  # for those that keep any
        """A pattern (glob) of the SQLite databases in which the CLI keeps rows of sessions, by their ids."""
        return None

    @abc.abstractmethod
    def parser(self, spec: RunSpec) -> Parser: ...
