"""A runner with a pool over one store; codex is tests/fakes/appserver.py, gemini tests/fakes/acp.py."""

import asyncio
import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shared.config import BackendConfig, Config, Warm
from shared.ids import new_id
from shared.redis import Redis
from shared.run import Failure, Run, RunSpec
from shared.store.runs import Depth
from shared.store.sessions import opening
from shared.warm import WarmState
from tests.store.store import Store
from worker.host import packaged_version
from worker.live import Publisher
from worker.runner import Limits, Runner
from worker.stage import Stage
from worker.warm.drivers import create_drivers
from worker.warm.pool import Pool

_FAKES = Path(__file__).parents[1] / "fakes"
_CLIS = {"codex": ("appserver.py", "@openai/codex", "0.169.0"), "gemini": ("acp.py", "@google/gemini-cli", "0.61.0")}


class World:
    def __init__(
        self,
        url: str,
        folder: Path,
        *,
        backend: str = "codex",
        version: str | None = None,
        start: str = "",
        env: Mapping[str, str] | None = None,
        **more: Any,
    ) -> None:
        self.folder = folder
        self.backend = backend
        file, package, known = _CLIS[backend]
        version = known if version is None else version
        warm = {name: more.pop(name) for name in Warm.__struct_fields__ if name in more}
        self.short = False
        cli = folder / "cli"
        cli.mkdir(exist_ok=True)
        shutil.copy(_FAKES / file, cli)
        if version:
            (cli / "package.json").write_text(json.dumps({"name": package, "version": version}))
        self.store = Store(Redis(url), lease_s=30)
        command = [sys.executable, "-S", "-E", str(cli / file)]
        made = {**(env or {}), **({"FAKE_START": start} if start else {})}
        config = Config(backends={backend: BackendConfig(command=command, env=made, warm=Warm(**warm))})
        stage = Stage(config, folder / "clinvk", {"HOME": str(folder), "PATH": "/usr/bin:/bin"})
        self.publisher = Publisher(self.store.events)
        self.pool = Pool(
            config,
            create_drivers(),
            stage.workspaces,
            lambda name: packaged_version(name, tuple(command)),
            instance="ins_1",
            short=lambda: self.short,
        )
        limits = {"lease_s": 30, "timeout_s": 60, "idle_s": 60, "max_output_bytes": 1 << 20, "end_grace_s": 0.5, **more}
        self.runner = Runner(
            self.store.runs, self.publisher, stage, Limits(**limits), host="h", instance="ins_1", warm=self.pool
        )
        self.tasks: list[asyncio.Task[Any]] = []

    @property
    def state(self) -> WarmState:
        return self.pool.states()[self.backend]

    async def open(self) -> None:
        self.tasks = [asyncio.create_task(self.publisher.run()), asyncio.create_task(self.pool.run())]
        await self.store.worker(queue=self.backend)

    async def close(self) -> None:
        await self.pool.close()
        for task in self.tasks:
            task.cancel()
        await self.store.redis.aclose()

    async def get(self, spec: RunSpec) -> Run:
        found = await self.store.runs.get(spec.id)
        assert found is not None
        return found

    async def begin(self, prompt: str, **fields: Any) -> tuple[RunSpec, "asyncio.Task[Run]"]:
        if "session_id" in fields:
            spec = RunSpec(id=new_id("run"), tenant="t", backend=self.backend, prompt=prompt, **fields)
            await self.store.runs.add(spec, self.backend, follower=None, depth=Depth(10), opening=opening(spec, ()))
        else:
            spec = await self.store.add(backend=self.backend, prompt=prompt, **fields)
        return spec, asyncio.create_task(self._carry_out(spec))

    async def _carry_out(self, spec: RunSpec) -> Run:
        assert await self.runner.carry_out(spec.id, self.backend)
        return await self.get(spec)

    async def run(self, prompt: str = "say", **fields: Any) -> Run:
        _, task = await self.begin(prompt, **fields)
        return await task

    async def speaking(self, spec: RunSpec, events: int = 2) -> None:
        """Until so many events of a run are there."""
        while (await self.get(spec)).sequence < events:
            await asyncio.sleep(0)

    async def held(self, spec: RunSpec) -> None:
        """Until the runner has it."""
        while not self.holds(spec):
            await asyncio.sleep(0)

    def holds(self, spec: RunSpec) -> bool:
        return spec.id in self.runner._held

    @property
    def host(self) -> int:
        """The pid of its only warm process."""
        (one,) = self.pool._kept[self.backend]
        assert one.process is not None
        return one.process.pid

    def cancel(self, spec: RunSpec) -> None:
        self.runner.order(f"cancel {spec.id} x".encode(), lambda _: Failure("cancelled", "it was", "cancelled"))

    async def ready(self, count: int = 1) -> None:
        while self.state.ready < count:
            await asyncio.sleep(0.002)

    async def heat(self, **fields: Any) -> None:
        """The first goes cold; then a warm process is there."""
        run = await self.run(**fields)
        assert text(run) == "cold"
        await self.ready()


def text(run: Run) -> str:
    assert run.outcome is not None
    return run.outcome.output


def host_of(run: Run) -> int:
    """The pid of the process that carried out a `say`."""
    return int(text(run).split()[1])


def cause(run: Run) -> str | None:
    assert run.outcome is not None
    return None if run.outcome.failure is None else run.outcome.failure.cause
