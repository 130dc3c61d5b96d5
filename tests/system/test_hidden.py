"""A CLI with a shell, of the worker's user and not root: it reads no secret of the service's processes from /proc."""

import contextlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.servers import RedisServer
from tests.system.service import (
    START_S,
    Proc,
    Service,
    children,
    closing,
    ended,
    free_port,
    kill_pid,
    run,
    submit,
    until,
)

pytestmark = pytest.mark.processes

ROOT = Path(__file__).parents[2]
USER = 10001
# What it may read of each process that it can see, and what of those is the service's.
SPY = """#!/bin/sh
cat > /dev/null
for pid in /proc/[0-9]*; do
    if tr '\\0' '\\n' < $pid/environ 2>/dev/null | grep -q '^CLINVK_REDIS_URL='; then echo "$pid/environ" >> "$HOME/read"; fi
    if tr '\\0' ' ' < $pid/cmdline | grep -q 'worker.main\\|worker.warden\\|shared.cli'; then
        echo "$pid" >> "$HOME/seen"
        for name in maps fd cwd; do ls $pid/$name/ >/dev/null 2>&1 && echo "$pid/$name" >> "$HOME/read"; done
        cat $pid/maps >/dev/null 2>&1 && echo "$pid/maps" >> "$HOME/read"
    fi
done
readlink /proc/$$/exe > /dev/null || echo "cannot read itself" >> "$HOME/read"
exec 3>&1
begun=$(setsid sh -c 'echo $$ >> "$HOME/tools"; exec sleep 300 >&3' &) # not before it has said who it is
[ -e "$HOME/stay" ] && { echo $$ >> "$HOME/tools"; exec sleep 300; }
echo '{"type":"result","subtype":"success","is_error":false,"result":"hi","session_id":"0b2bd9a3-1111-4222-8333-944445555666","num_turns":1,"usage":{"input_tokens":1,"output_tokens":1}}'
"""


def interpreter(folder: Path) -> str:
    """One that the other user may execute: where ours lies in a closed place, such as root's HOME, a copy of it."""
    ours = Path(sys.executable).resolve()
    if os.geteuid() or all(path.stat().st_mode & 0o001 for path in ours.parents):
        return sys.executable
    version = f"python3.{sys.version_info.minor}"
    lib = Path("lib") / version
    (folder / "bin").mkdir(parents=True)
    shutil.copy(ours, folder / "bin" / version)
    left = shutil.ignore_patterns("site-packages", "test", "tests", "idlelib", "config-*")
    shutil.copytree(Path(sys.base_prefix) / lib, folder / lib, ignore=left)
    for shared in (Path(sys.base_prefix) / "lib").glob("libpython*.so*"):
        shutil.copy(shared, folder / "lib")
    return str(folder / "bin" / version)


class Theirs(Service):
    """An API replica and a worker of a user that is not root, with a CLI that looks around."""

    def __init__(self) -> None:
        super().__init__()
        self.redis.close()
        port = free_port()
        self.redis = RedisServer("no", "--port", str(port), "--bind", "127.0.0.1")
        self.url = f"redis://127.0.0.1:{port}/0"
        self.user = None if os.geteuid() else USER
        site = next(path for path in sys.path if path.endswith("site-packages"))
        self.home = self.folder / "home"
        self.home.mkdir()
        self.cli = self.folder / "claude"
        self.cli.write_text(SPY)
        self.cli.chmod(0o755)
        self.folder.chmod(0o755)
        self.settings = {
            "CLINVK_REDIS_URL": self.url,
            "CLINVK_BACKENDS__CLAUDE__COMMAND": str(self.cli),
            "PYTHONPATH": f"{ROOT}:{site}",
            "PYTHONDONTWRITEBYTECODE": "1",
            "LD_LIBRARY_PATH": str(self.folder / "python" / "lib"),
        }
        if self.user is not None:
            os.chown(self.home, self.user, self.user)

    def begin(self) -> str:
        python = [interpreter(self.folder / "python"), "-m", "shared.cli"]
        port = free_port()
        for name, args in (("worker", ["--name", "host0"]), ("serve", ["--port", str(port)])):
            log = self.folder / f"{name}.log"
            proc = Proc([name, *args], self.env(**self.settings), log, python, self.user)
            if name == "worker":
                self.workers.append(proc)
            else:
                self.apis.append((proc, f"http://127.0.0.1:{port}"))
        base = self.apis[0][1]
        until(lambda: self._up(self.apis[0][0], base), START_S)
        until(lambda: ready(base), START_S)
        return base

    def told(self, name: str) -> list[str]:
        with contextlib.suppress(FileNotFoundError):
            return (self.home / name).read_text().split("\n")[:-1]
        return []

    def tools(self, count: int) -> list[int]:
        """All that have been started until now, once there are so many."""
        until(lambda: len(self.told("tools")) >= count, 60)  # the CLI looks at all processes of the machine first
        return [int(pid) for pid in self.told("tools")]


def ready(base: str) -> Any:
    with contextlib.suppress(httpx.HTTPError, KeyError, json.JSONDecodeError):
        found = httpx.get(f"{base}/api/v1/backends").json()["backends"]
        return any(one["name"] == "claude" and one["available"] for one in found)
    return False


@pytest.fixture
def theirs() -> Iterator[Theirs]:
    service = Theirs()
    with closing(service):
        yield service


def gone(pids: list[int]) -> bool:
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_a_cli_reads_no_secret_of_the_service_and_all_that_it_starts_still_ends(theirs: Theirs):
    base = theirs.begin()
    api, worker = theirs.apis[0][0], theirs.workers[0]
    hidden = (api.pid, worker.pid, theirs.celery_of(worker))
    assert {os.stat(f"/proc/{pid}/environ").st_uid for pid in hidden} == {0}

    answer = httpx.post(f"{base}/api/v1/prompt", json={"backend": "claude", "prompt": "look"}, timeout=60).json()

    assert answer["output"] == "hi", (answer, theirs.logs())
    seen = {int(Path(path).name) for path in theirs.told("seen")}
    assert set(hidden) <= seen, "it can see them all"
    assert theirs.told("read") == []
    until(lambda: gone(theirs.tools(1)), 10)

    (theirs.home / "stay").touch()
    cancelled = submit(base, "x", backend="claude", extra=[])
    tools = theirs.tools(3)
    assert httpx.delete(f"{base}/api/v1/runs/{cancelled}", timeout=30).status_code < 300
    until(lambda: gone(tools), 10)
    assert ended(base, cancelled)["status"] == "cancelled"

    lost = submit(base, "x", backend="claude", extra=[])
    tools = theirs.tools(5)
    kill_pid(theirs.celery_of(worker))
    until(lambda: gone(tools), 10)
    assert ended(base, lost)["status"] == "failed"

    until(lambda: children(worker.pid), 20)  # the warden has started it again
    until(lambda: ready(base), START_S)
    last = submit(base, "x", backend="claude", extra=[])
    tools = theirs.tools(7)
    pid = theirs.celery_of(worker)
    worker.kill()
    until(lambda: gone([*tools, pid]), 10)
    assert run(base, last)["status"] in ("running", "failed")

    assert theirs.told("read") == []
    api.send(signal.SIGTERM)
    assert api.wait() == 0
