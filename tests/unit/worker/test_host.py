"""What a host says of itself, and what it takes."""

import asyncio
import contextlib
from pathlib import Path
from typing import Any

from shared.config import BackendConfig, Config
from shared.errors import StoreUnavailable
from shared.host import Instance
from worker.host import Host
from worker.stage import Stage


class Hosts:
    """Stands for the store's."""

    def __init__(self) -> None:
        self.away = False
        self.instance: Instance | None = None
        self.slots: dict[str, int] = {}

    async def announce(self, instance: Instance, slots: dict[str, int], *, life_s: float) -> None:  # the store's
        if self.away:
            raise StoreUnavailable("away", retry_after_s=1)
        self.instance, self.slots = instance, slots


class World:
    def __init__(self, folder: Path, **config: Any) -> None:
        self.cli = folder / "bin" / "cli"
        self.cli.parent.mkdir(parents=True)
        self.hosts = Hosts()
        self.open: list[str] = []
        made = Config(backends={"codex": BackendConfig(command=str(self.cli), **config)})
        stage = Stage(made, folder / "clinvk", {"HOME": str(folder / "user"), "PATH": "/bin"})
        self.host = Host(
            made,
            stage,
            self.hosts,  # type: ignore[arg-type]  # a stand-in
            ["codex"],
            host="h",
            instance="ins_1",
            running=dict,
            open_to=lambda names: setattr(self, "open", list(names)),
        )

    def install(self) -> None:
        self.cli.write_text("#!/bin/sh\necho codex 1.2.3\n")
        self.cli.chmod(0o755)

    def look(self) -> None:
        self.host.look()
        asyncio.run(self.host.announce())


def test_what_is_taken_follows_the_clis_as_they_come_and_go(tmp_path):
    world = World(tmp_path)

    world.look()
    assert world.open == []
    world.install()
    world.look()
    assert world.open == ["codex"]
    assert world.hosts.instance is not None
    assert world.hosts.instance.backends[0].version == "1.2.3"
    world.cli.unlink()
    world.look()

    assert world.open == []
    assert world.hosts.slots == {"codex": 0, "codex@h": 0}


def test_it_is_known_what_is_taken_though_it_cannot_be_announced(tmp_path):
    world = World(tmp_path)
    world.install()
    world.hosts.away = True

    with contextlib.suppress(StoreUnavailable):
        world.look()

    assert world.open == ["codex"]


def test_the_flags_that_an_operator_allows_are_announced(tmp_path):
    world = World(tmp_path, allow_extra_flags=["--oss", "--profile="])
    world.install()

    world.look()

    assert world.hosts.instance is not None
    assert set(world.hosts.instance.backends[0].capabilities.extra) == {"--oss", "--profile="}
