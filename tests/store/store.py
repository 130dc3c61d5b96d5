"""All of the store over one client."""

import json
from typing import Any

from shared.dispatch import Dispatch
from shared.host import BackendState, Capabilities, Instance, Readiness
from shared.ids import new_id
from shared.run import RunSpec, Status
from shared.store import Limits, create_scripts
from shared.store.events import Events
from shared.store.flows import Flows
from shared.store.followers import Followers
from shared.store.hosts import Hosts
from shared.store.runs import Depth, Runs
from shared.store.sessions import Sessions
from shared.sweep import Sweeper


class Store:
    """All of the store over one client, with short leases."""

    def __init__(self, redis: Any, *, wait: bool = False, depth: Depth = Depth(100_000), **limits: Any) -> None:
        self.redis = redis
        self.scripts = create_scripts(
            redis, Limits(**{"lease_s": 0.2, "retention_s": 60, "max_events": 1000, **limits})
        )
        self.runs = Runs(self.scripts)
        self.events = Events(self.scripts)
        self.hosts = Hosts(self.scripts)
        self.api = Followers(self.scripts, "api_1")
        self.flows = Flows(self.scripts, self.runs)
        self.sessions = Sessions(self.scripts)
        self.dispatch = Dispatch(self.runs, self.hosts, self.flows, depth=depth, wait=wait)
        self.sweeper = self.sweeps()

    def sweeps(self, hangup_grace_s: float = 0) -> Sweeper:
        return Sweeper(
            self.scripts, self.runs, self.dispatch, self.sessions, max_wait_s=60, hangup_grace_s=hangup_grace_s
        )

    async def worker(self, slots: int = 100, queue: str = "echo", id: str = "ins_1", life_s: float = 30) -> None:
        state = BackendState(
            name=queue, readiness=Readiness.READY, slots=slots, capabilities=Capabilities(modes={"": ()})
        )
        instance = Instance(id=id, host="h", pid=1, version="0", started_at=0, slots=slots, backends=(state,))
        await self.hosts.announce(instance, {queue: slots}, life_s=life_s)

    async def add(self, *, follower: str | None = None, max_depth: int = 1000, **spec: Any) -> RunSpec:
        fields = {"id": new_id("run"), "tenant": "t", "backend": "echo", "prompt": "p", **spec}
        made = RunSpec(**fields)
        await self.runs.add(made, made.backend, follower=follower, depth=Depth(max_depth))
        return made

    async def status(self, spec: RunSpec) -> Status:
        run = await self.runs.get(spec.id)
        assert run is not None
        return run.status

    async def claim(self, spec: RunSpec, token: str = "att_1") -> Any:
        return await self.runs.claim(spec.id, token, host="h", instance="ins_1")

    async def hints(self, queue: str = "echo") -> list[str]:
        return [json.loads(m)["headers"]["id"] for m in await self.redis("LRANGE", queue, 0, -1)][::-1]
