"""Prepares a run on this host: directories, environment, the host's defaults and bans, and the CLI's command line."""

import errno
import fnmatch
import logging
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from shared.config import BackendConfig, Config
from shared.errors import BackendUnavailable, NotEnforceable
from shared.run import RunSpec
from worker.backends import BACKENDS
from worker.backends.base import Backend, Launch, Place, Settings
from worker.workspace import Workspaces

_log = logging.getLogger(__name__)

# What every CLI may see of the host's environment: where things are, how to reach the world.
_BASE_ENV: tuple[str, ...] = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "USER", "LOGNAME", "SHELL")
_BASE_ENV += ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "ALL_PROXY")
_BASE_ENV += ("SSL_CERT_FILE", "SSL_CERT_DIR", "NODE_EXTRA_CA_CERTS")

_ECHO = (sys.executable, "-I", "-S", str(Path(__file__).parent / "backends" / "echo_cli.py"))

# From strict to permissive.
_APPROVALS = ("always", "default", "auto", "none")
_SANDBOXES = ("read-only", "workspace", "full")


class Prepared(msgspec.Struct, frozen=True):
    """A run that can be started. `clean` removes what no session needs."""

    backend: Backend
    spec: RunSpec
    settings: Settings
    place: Place
    env: Mapping[str, str]  # before the backend's own: what `launch` was made with
    launch: Launch
    workspaces: Workspaces

    @property
    def scratch(self) -> str:
        return self.place.scratch

    def clean(self) -> None:
        take_back(self.launch)
        self.workspaces.remove(self.spec.id)


def wanted_command(config: Config, name: str) -> list[str]:
    """What is looked for."""
    given = config.backend(name).command
    if name == "echo" and not given:
        return list(_ECHO)
    return [given] if isinstance(given, str) else list(given or BACKENDS[name].default_command)


def find_command(config: Config, environ: Mapping[str, str], name: str) -> tuple[str, ...] | None:
    """The CLI with its path resolved; None where it is not to be found."""
    words = wanted_command(config, name)
    path = shutil.which(words[0], path=environ.get("PATH")) if words else None
    return None if path is None else (str(Path(path).absolute()), *words[1:])


class Stage:
    def __init__(self, config: Config, home: Path, environ: Mapping[str, str]) -> None:
        self._config = config
        self._environ = environ
        self._user_home = environ.get("HOME", "/")
        self.workspaces = Workspaces(
            home,
            Path(self._user_home),
            config.server.allowed_workdir_prefixes,
            config.server.blocked_workdir_prefixes,
        )

    def prepare(self, spec: RunSpec) -> Prepared:
        """Raises: InvalidRequest and its kind, BackendUnavailable."""
        backend = BACKENDS.get(spec.backend)
        command = None if backend is None else self.command(spec.backend)
        if backend is None or command is None:
            raise BackendUnavailable(f"{spec.backend} is not installed on this host", retry_after_s=30)
        config = self._config.backend(spec.backend)
        self._hold_ceilings(spec, config)
        place = self.workspaces.make(
            spec.id,
            spec.session_id or spec.workspace,
            spec.workdir,
            spec.add_dirs,
            within=spec.workdir_prefixes,
            own_home=backend.own_home,
        )
        try:
            settings = self._settings(config, command)
            env = self._env(spec.backend, f"{place.scratch}/tmp") | _trace(spec)
            launch = backend.launch(spec, settings, place, env)
            try:
                lay_out(launch)
            except BaseException:
                take_back(launch)
                raise
        except BaseException:
            self.workspaces.remove(spec.id)
            raise
        return Prepared(backend, spec, settings, place, env, launch, self.workspaces)

    def command(self, name: str) -> tuple[str, ...] | None:
        return find_command(self._config, self._environ, name)

    def _settings(self, config: BackendConfig, command: tuple[str, ...]) -> Settings:
        flags = self._config.unified_flags
        tools = config.allowed_tools
        names = [name.strip() for name in tools.split(",")] if isinstance(tools, str) else list(tools or [])
        return Settings(
            command=command,
            model=config.model,
            system_prompt=config.system_prompt,
            approval_mode=_under(
                _APPROVALS, config.approval_mode or flags.approval_mode, config.max_approval_mode, unsaid="default"
            ),
            sandbox_mode=_under(
                _SANDBOXES, config.sandbox_mode or flags.sandbox_mode, config.max_sandbox_mode, unsaid="full"
            ),
            max_turns=flags.max_turns,
            max_tokens=flags.max_tokens,
            allowed_tools=() if names == ["all"] else tuple(name for name in names if name),
            extra_flags=tuple(config.extra_flags),
            env=config.env,
            as_root=os.geteuid() == 0,
            allow_extra=tuple(config.allow_extra_flags),
        )

    def _hold_ceilings(self, spec: RunSpec, config: BackendConfig) -> None:
        """What was asked for; the modes of runs that ask for none are held in their settings."""
        for name, order, asked, ceiling in (
            ("approval_mode", _APPROVALS, spec.approval_mode, config.max_approval_mode),
            ("sandbox_mode", _SANDBOXES, spec.sandbox_mode, config.max_sandbox_mode),
        ):
            if asked is not None and ceiling is not None and order.index(asked) > order.index(ceiling):
                raise NotEnforceable(f"{name} {asked!r} is above this host's limit {ceiling!r}", field=name)

    def _env(self, name: str, tmp: str) -> dict[str, str]:
        env = passed_on(self._config, self._environ, name)
        return {"LANG": "C.UTF-8", "TERM": "xterm-256color", **env, "HOME": self._user_home, "TMPDIR": tmp}


def passed_on(config: Config, environ: Mapping[str, str], name: str) -> dict[str, str]:
    """What a CLI is given of the worker's own environment."""

    def matches(variable: str, patterns: Sequence[str]) -> bool:
        return not variable.startswith("CLINVK_") and any(fnmatch.fnmatchcase(variable, one) for one in patterns)

    # A vendor's variable that is set to nothing, as containers are often given them, is none: it would hide a login.
    return {
        variable: value
        for variable, value in environ.items()
        if variable in _BASE_ENV
        or (value and matches(variable, BACKENDS[name].vendor_env))
        or matches(variable, config.backend(name).env_passthrough)
    }


def _trace(spec: RunSpec) -> dict[str, str]:
    """Where in a trace a CLI that takes part in it stands."""
    given = {"TRACEPARENT": spec.traceparent, "TRACESTATE": spec.tracestate}
    return {name: value for name, value in given.items() if value}


def _under(order: Sequence[str], mode: str | None, ceiling: str | None, *, unsaid: str) -> str | None:
    """The host's own mode, or its ceiling where that is stricter. `unsaid`: what none may come to at the CLI."""
    if ceiling is None or order.index(mode or unsaid) <= order.index(ceiling):
        return mode
    return ceiling


def lay_out(launch: Launch) -> None:
    """Raises: BackendUnavailable where the disk is full, or a file cannot be read or written."""
    try:
        for path, content in launch.files.items():
            write(Path(path), content)
        for target, source in launch.copies.items():
            if Path(source).is_file():
                write(Path(target), Path(source).read_bytes())
    except OSError as error:
        raise BackendUnavailable(
            f"cannot lay out the run's files on this host: {error.strerror}", retry_after_s=30
        ) from error


def take_back(launch: Launch) -> None:
    """A session's HOME stays, the login that was copied into it does not."""
    for target in launch.copies:
        try:
            if _is_direct(Path(target).parent):
                Path(target).unlink(missing_ok=True)
        except OSError as error:
            _log.warning("cannot remove a login from %s: %s", target, error.strerror)


def _is_direct(folder: Path) -> bool:
    """A session's HOME has been in the hands of the CLI: what lies there may be a link to somewhere else."""
    return os.path.realpath(folder) == str(folder)


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not _is_direct(path.parent):
        raise OSError(errno.ELOOP, "a directory of the session has been replaced by a link")
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(content)
