"""What this host offers, and its announcement to the fleet."""

import asyncio
import contextlib
import json
import logging
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Hashable, Iterable, Mapping
from importlib.metadata import version
from pathlib import Path

import msgspec

from shared import names
from shared.config import Config
from shared.errors import StoreUnavailable
from shared.host import BackendState, Capabilities, Instance, Readiness, Vitals
from shared.store.hosts import Hosts
from shared.warm import WarmState
from worker import stamps
from worker.backends import BACKENDS
from worker.marks import Marks
from worker.stage import Stage, wanted_command

_log = logging.getLogger(__name__)

_EVERY_S = 2.0
_LIFE_S = 7.0
_VERSION_WITHIN_S = 10.0


def offered(config: Config, only: list[str] | None) -> list[str]:
    """The backends that this worker may offer; echo only where it is switched on."""
    return [
        name
        for name in BACKENDS
        if (only is None or name in only)
        and (config.backend(name).enabled is True or (config.backend(name).enabled is None and name != "echo"))
    ]


class Host:
    """Announces this instance while it lives. `running` tells how many runs of each backend are under way;
    `open_to` is told which backends are here, at each look."""

    def __init__(
        self,
        config: Config,
        stage: Stage,
        hosts: Hosts,
        backends: list[str],
        *,
        host: str,
        instance: str,
        running: Callable[[], Mapping[str, int]],
        open_to: Callable[[Iterable[str]], None],
        marks: Marks,
        warm: Callable[[], Mapping[str, WarmState]] = dict,
        vitals: Callable[[], Vitals] | None = None,
    ) -> None:
        self._config = config
        self._stage = stage
        self._hosts = hosts
        self._running = running
        self._open_to = open_to
        self._warm = warm
        self._names = backends
        self._vitals = vitals
        self._host = host
        self._instance = instance
        self._started_at = time.time()
        self._versions: dict[tuple[str, ...], tuple[Hashable, str | None]] = {}  # with the files' stamps
        self._missing: list[str] = []
        self.draining = False
        self._stopping = False
        self._marks = marks
        self._news = asyncio.Event()
        marks.changed = self._news.set

    def look(self) -> None:
        """Finds the CLIs and their versions. Slow where a version must be asked for; call it off the loop."""
        missing = []
        for name in self._names:
            command = self._stage.command(name)
            if command is None:
                missing.append(name)
            elif self._known(command) is None:
                stamp = stamps.of_command(command)
                self._versions[command] = (stamp, find_version(name, command))
        if missing != self._missing:
            self._missing = missing
            self._tell(missing)

    def _known(self, command: tuple[str, ...]) -> tuple[str | None] | None:
        """The version, which may be none; None where it has not been looked for since the CLI's files were changed."""
        stamp, found = self._versions.get(command, (None, None))
        return (found,) if stamp == stamps.of_command(command) else None

    def version(self, name: str) -> str | None:
        """Of the CLI as it lies here now; None where it does not say one, empty where there is no CLI. Quick."""
        command = self._stage.command(name)
        if command is None:
            return ""
        known = self._known(command)
        return known[0] if known is not None else packaged_version(name, command)

    def _tell(self, missing: list[str]) -> None:
        """Once for each change: a worker with nothing to run would else be silent for ever."""
        looked = {name: wanted_command(self._config, name)[:1] for name in missing}
        sought = ", ".join(f"{name} (as {' '.join(words) or 'nothing'})" for name, words in looked.items())
        if missing and len(missing) == len(self._names):
            _log.warning(
                "no CLI is here, so that this worker takes no runs; looked for %s on the PATH. `clinvk doctor` says what "
                "to do",
                sought,
            )
        elif missing:
            _log.info("not here, and not offered: %s; `clinvk doctor` says what to do", sought)

    def state(self) -> Instance:
        limit = self._config.worker.concurrency
        counts = self._running()
        warm = self._warm()
        states = []
        for name in self._names:
            command = self._stage.command(name)
            slots = min(limit, self._config.backend(name).max_concurrency or limit)
            mark = self._marks.of(name)
            ready = command is not None and mark is None
            states.append(
                BackendState(
                    name=name,
                    readiness=Readiness.READY if ready else mark.readiness if mark else Readiness.NOT_INSTALLED,
                    version=(self._known(command) or (None,))[0] if command else None,
                    path=command[0] if command else None,
                    reason=None if ready else mark.reason if mark else f"{name} is not on the PATH of {self._host}",
                    until=mark.until if mark and command else None,
                    slots=slots if ready else 0,
                    running=counts.get(name, 0),
                    capabilities=self._capabilities(name),
                    warm=warm.get(name),
                )
            )
        return Instance(
            id=self._instance,
            host=self._host,
            pid=os.getpid(),
            version=version("clinvk"),
            started_at=self._started_at,
            slots=limit,
            running=sum(counts.values()),
            draining=self.draining,
            labels=self._config.worker.labels,
            backends=tuple(states),
            vitals=None if self._vitals is None else self._vitals(),
        )

    def _capabilities(self, name: str) -> Capabilities:
        """The CLI's own, with the flags that this host's operator lets callers pass besides."""
        found = BACKENDS[name].capabilities(as_root=os.geteuid() == 0)
        more = self._config.backend(name).allow_extra_flags
        return msgspec.structs.replace(found, extra=tuple(dict.fromkeys((*found.extra, *more))))

    def stop(self) -> None:
        """This instance is about to end: from its next announcement on it takes nothing more."""
        self._stopping = self.draining = True

    async def announce(self) -> None:
        """Raises: StoreUnavailable."""
        self._take()  # also where Redis is away
        self.draining = self._stopping or await self._hosts.drained(self._host)
        state = self._take()
        slots = {}
        for backend in state.backends:
            count = 0 if self.draining else backend.slots
            slots[names.queue(backend.name)] = count
            slots[names.queue(backend.name, self._host)] = count
        await self._hosts.announce(state, slots, life_s=_LIFE_S)

    def _take(self) -> Instance:
        """Opens the queues of what can run now, and no others."""
        state = self.state()
        ready = [backend.name for backend in state.backends if backend.readiness is Readiness.READY]
        self._open_to([] if self.draining else ready)
        return state

    async def run(self) -> None:
        """Announces until cancelled."""
        while True:
            await asyncio.to_thread(self.look)
            try:
                await self.announce()
            except StoreUnavailable as error:
                _log.log(error.level, "cannot announce: %s", error.message)
            self._news.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_EVERY_S):
                    await self._news.wait()

    async def retire(self) -> None:
        try:
            await self._hosts.retire(self._instance)
        except StoreUnavailable as error:
            _log.log(error.level, "cannot retire: %s", error.message)


def packaged_version(name: str, command: tuple[str, ...]) -> str | None:
    """What the npm package that the CLI lies in says; None where it lies in none."""
    package = BACKENDS[name].npm_package
    for word in command:
        if package is None or not word.startswith("/"):
            continue
        for folder in Path(word).resolve().parents:
            try:
                about = json.loads((folder / "package.json").read_bytes())
            except (OSError, ValueError):
                continue
            if isinstance(about, dict) and str(about.get("name", "")).startswith(package):
                return str(about.get("version"))
    return None


def find_version(name: str, command: tuple[str, ...]) -> str | None:
    """The CLI's version: from its package, else by asking it, in a HOME of its own."""
    if BACKENDS[name].npm_package is None:
        return version("clinvk")
    if found := packaged_version(name, command):
        return found
    home = tempfile.mkdtemp(prefix="clinvk-version-")
    env = {
        "PATH": str(Path(command[0]).parent) + ":/usr/local/bin:/usr/bin:/bin",
        "HOME": home,
        "TMPDIR": home,
        "NO_COLOR": "1",
    }
    try:
        done = subprocess.run(
            [*command, "--version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_VERSION_WITHIN_S,
            env=env,
            cwd=home,
            check=False,
        )
        words = done.stdout.decode(errors="replace").split()
        return next((word for word in words if word[:1].isdigit()), None)
    except (OSError, subprocess.TimeoutExpired):
        return None
    finally:
        shutil.rmtree(home, ignore_errors=True)
