"""The Procfile is really run: each of its lines by a shell, as the programs that read such files do it."""

import contextlib
import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.deploy.found import ROOT
from tests.servers import RedisServer
from tests.system.service import BASE_ENV, free_port, living, prompt, until

pytestmark = pytest.mark.processes

LINES = dict(re.findall(r"^([A-Za-z0-9_-]+):\s*(.+)$", (ROOT / "Procfile").read_text(), re.MULTILINE))


@contextlib.contextmanager
def run(**env: str) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """All of it, each in a process group of its own, ended together."""
    folder = Path(tempfile.mkdtemp(prefix="clinvk-procfile-"))
    mark = f"CLINVK_TEST_MARK={folder.name}"
    environ = {**BASE_ENV, "HOME": str(folder), "CLINVK_TEST_MARK": folder.name, **env}
    started = {}
    for name, line in LINES.items():
        with (folder / f"{name}.log").open("wb") as log:
            started[name] = subprocess.Popen(
                ["/bin/sh", "-c", f"exec {line}"],
                cwd=ROOT,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
    try:
        yield started
    except BaseException:
        print(*[path.read_text() for path in folder.glob("*.log")], sep="\n")
        raise
    finally:
        for process in started.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        codes = {name: process.wait(20) for name, process in started.items()}
        until(lambda: not living(mark), 10)
    assert codes == dict.fromkeys(LINES, 0)


def ready(base: str) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return bool(httpx.get(base + "/health").json()["status"] == "ok")
    return False


def test_the_procfile_makes_a_small_fleet_and_ends_in_good_order():
    assert set(LINES) == {"api", "worker"}
    redis, port = RedisServer("everysec"), free_port()
    base = f"http://127.0.0.1:{port}"
    try:
        env = {"PORT": str(port), "CLINVK_REDIS_URL": redis.url, "CLINVK_BACKENDS__ECHO__ENABLED": "true"}
        with run(**env) as started:
            until(lambda: ready(base) or any(one.poll() is not None for one in started.values()), 20)

            assert prompt(base, "from the Procfile")["output"] == "from the Procfile"
    finally:
        redis.close()
