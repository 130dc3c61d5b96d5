"""What a host says of itself, and what it takes."""

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import pytest

from shared.config import BackendConfig, Config
from shared.errors import StoreUnavailable
from shared.host import Instance, Readiness
from shared.run import Failure
from worker.host import Host
from worker.marks import Marks
from worker.stage import Stage


class Hosts:
    """Stands for the store's."""

    def __init__(self) -> None:
        self.away = False
        self.out = False
        self.instance: Instance | None = None
        self.slots: dict[str, int] = {}

    async def announce(self, instance: Instance, slots: dict[str, int], *, life_s: float) -> None:  # the store's
        if self.away:
            raise StoreUnavailable("away", retry_after_s=1)
        self.instance, self.slots = instance, slots

    async def drained(self, host: str) -> bool:
        if self.away:
            raise StoreUnavailable("away", retry_after_s=1)
        return self.out


class World:
    def __init__(self, folder: Path, **config: Any) -> None:
        self.cli = folder / "bin" / "cli"
        self.cli.parent.mkdir(parents=True)
        self.hosts = Hosts()
        self.open: list[str] = []
        self.now = 1000.0
        self.marks = Marks(lambda: self.now)
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
            marks=self.marks,
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


def test_an_upgraded_cli_has_its_new_version_at_the_next_look(tmp_path):
    world = World(tmp_path)
    assert world.host.version("codex") == ""
    world.install()
    assert world.host.version("codex") is None, "nobody has asked it yet"
    world.look()
    assert world.host.version("codex") == "1.2.3"

    world.cli.with_suffix(".new").write_text("#!/bin/sh\necho codex 10.20.30\n")
    world.cli.with_suffix(".new").chmod(0o755)
    world.cli.with_suffix(".new").rename(world.cli)
    assert world.host.version("codex") is None
    world.look()

    assert world.host.version("codex") == "10.20.30"
    assert world.hosts.instance is not None
    assert world.hosts.instance.backends[0].version == "10.20.30"


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


def test_one_that_is_about_to_end_takes_nothing_though_its_host_is_not_drained(tmp_path):
    world = World(tmp_path)
    world.install()
    world.look()

    world.host.stop()
    world.look()

    assert world.open == []
    assert world.hosts.instance is not None
    assert world.hosts.instance.draining
    assert world.hosts.slots == {"codex": 0, "codex@h": 0}


def test_a_drained_host_takes_nothing_and_says_so(tmp_path):
    world = World(tmp_path)
    world.install()
    world.look()
    world.hosts.out = True

    world.look()

    assert world.open == []
    assert world.hosts.instance is not None
    assert world.hosts.instance.draining
    assert world.hosts.slots == {"codex": 0, "codex@h": 0}
    world.hosts.out = False
    world.look()
    assert world.open == ["codex"]


@pytest.mark.parametrize(
    ("failure", "readiness", "for_s"),
    [
        (Failure("backend_login", "log in", "login"), Readiness.NOT_LOGGED_IN, 60),
        (Failure("backend_limited", "quota", "rate_limited", 300.0), Readiness.LIMITED, 300),
        (Failure("backend_limited", "quota", "rate_limited"), Readiness.LIMITED, 60),
    ],
)
def test_what_a_run_has_shown_is_told_to_the_fleet_until_it_may_be_over(tmp_path, failure, readiness, for_s):
    world = World(tmp_path)
    world.install()

    world.marks.see("codex", failure, 0)
    world.look()

    assert world.open == []
    assert world.hosts.instance is not None
    state = world.hosts.instance.backends[0]
    assert (state.readiness, state.reason, state.until, state.slots) == (readiness, failure.message, 1000 + for_s, 0)
    world.now += for_s
    world.look()
    assert world.open == ["codex"]


def test_a_run_that_works_lifts_the_mark_and_other_failures_set_none(tmp_path):
    world = World(tmp_path)
    world.install()
    world.marks.see("codex", Failure("backend_error", "m", "crashed"), 0)
    world.look()
    assert world.open == ["codex"]

    world.marks.see("codex", Failure("backend_login", "m", "login"), 0)
    world.marks.see("codex", None, world.now)
    world.look()

    assert world.open == ["codex"]


def test_a_run_that_began_before_a_mark_and_works_says_nothing_of_it(tmp_path):
    world = World(tmp_path)
    world.install()
    begun = world.now
    world.now += 1
    world.marks.see("codex", Failure("backend_limited", "m", "rate_limited", 300.0), begun)

    world.marks.see("codex", None, begun)

    world.look()
    assert world.open == []
    world.marks.see("codex", None, world.now)
    world.look()
    assert world.open == ["codex"]


def test_a_worker_without_any_cli_says_once_what_it_looked_for_and_again_when_they_are_gone(tmp_path, caplog):
    caplog.set_level("INFO", logger="worker.host")
    world = World(tmp_path)

    world.look()
    world.look()
    world.install()
    world.look()
    world.cli.unlink()
    world.look()

    told = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert [level for level, _ in told] == ["WARNING", "WARNING"]
    assert f"looked for codex (as {world.cli})" in told[0][1]
    assert "`clinvk doctor`" in told[0][1]


def test_one_cli_that_is_missing_beside_others_is_no_warning(tmp_path, caplog):
    caplog.set_level("INFO", logger="worker.host")
    world = World(tmp_path)
    world.install()
    world.host._names.append("gemini")  # a second backend

    world.look()

    (record,) = caplog.records
    assert record.levelname == "INFO"
    assert "not here, and not offered: gemini (as gemini)" in record.getMessage()
