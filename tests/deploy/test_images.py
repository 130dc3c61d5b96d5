"""What the images promise, without an engine: the wheel on the images' packages alone, process 1 of its own namespace,
as user 10001 without rights, on a read-only root."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.deploy.found import ROOT, TOOLS, missing, system
from tests.servers import RedisServer
from tests.system.service import children, free_port, living, prompt, serving, stream, until, whole

pytestmark = pytest.mark.processes

USER = 10001


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, unpacked."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=60)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as found:
        found.extractall(folder / "site")
    return folder / "site"


class Container:
    """One process as the images start it. What it needs to read is bound into place; the rest of /tmp is empty."""

    def __init__(self, site: Path, redis: RedisServer, *words: str, **env: str) -> None:
        python = TOOLS / "packages" / "bin" / "python"
        if not python.exists():
            missing("the images' packages are not installed; `make tools` installs them from PyPI")
        if os.getuid() != 0:
            missing("only root may make the namespaces of this test")
        self.log = Path(tempfile.mkdtemp(prefix="clinvk-image-")) / "log"
        self.home = f"/tmp/home{free_port()}"
        environ = {
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "HOME": self.home,
            "PYTHONPATH": str(site),
            "PYTHONDONTWRITEBYTECODE": "1",
            "CLINVK_REDIS_URL": redis.url,
            "CLINVK_BACKENDS__ECHO__ENABLED": "true",
            **env,
        }
        needed = [Path(sys.base_prefix), TOOLS / "packages", site, redis.folder]
        words = (str(python), "-m", "shared.cli", *words)
        setpriv = f"--reuid {USER} --regid {USER} --clear-groups --bounding-set=-all --inh-caps=-all --no-new-privs"
        script = [
            *_bound(needed),
            f"mkdir {self.home}",
            f"mount -t tmpfs -o uid={USER},mode=700 none {self.home}",
            "mount -o remount,bind,ro /",
            "! touch /written 2>/dev/null",
            "cd " + self.home,
            f'exec setpriv {setpriv} "$@"',
        ]
        with self.log.open("wb") as out:
            spaces = "--mount --pid --fork --mount-proc".split()  # noqa: SIM905  # reads better
            self.process = subprocess.Popen(
                [system("unshare", "util-linux"), *spaces, "sh", "-euc", "\n".join(script), "sh", *words],
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )

    @property
    def pid(self) -> int:
        """The process that is number 1 inside."""
        return int(until(lambda: children(self.process.pid))[0])

    def told(self, number: int, limit_s: float = 30.0) -> int:
        """Its exit code."""
        os.kill(self.pid, number)
        return self.process.wait(limit_s)

    def close(self) -> None:
        if self.process.poll() is None:  # `--kill-child` is forgotten when the child changes its user
            for pid in children(self.process.pid):
                os.kill(pid, signal.SIGKILL)  # and all of its namespace with it
        self.process.wait(10)
        until(lambda: not living(f"HOME={self.home}"))
        shutil.rmtree(self.log.parent)


def _bound(needed: list[Path]) -> Iterator[str]:
    """A bare /tmp and, of folders that others may not enter, nothing but what is needed."""
    closed = {Path("/", path.parts[1]) for path in needed for above in path.parents if not above.stat().st_mode & 0o001}
    yield "mount -t tmpfs none /mnt"
    for number, path in enumerate(needed):
        yield f"mkdir /mnt/{number}; mount --bind {path} /mnt/{number}"
    for top in {*closed, Path("/tmp")}:
        yield f"mount -t tmpfs -o mode={'1777' if top.name == 'tmp' else '755'} none {top}"
    for number, path in enumerate(needed):
        yield f"mkdir -p {path}; mount --bind /mnt/{number} {path}"
    yield "umount -l /mnt"


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    server = RedisServer("everysec")
    server.folder.chmod(0o755)
    (server.folder / "redis.sock").chmod(0o777)
    yield server
    server.close()


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def test_api_and_worker_run_as_their_images_run_them(site, redis):
    port = free_port()
    base = f"http://127.0.0.1:{port}"
    with contextlib.ExitStack() as stack:
        api = Container(site, redis, "serve", "--host", "127.0.0.1", "--port", str(port))
        stack.callback(api.close)
        worker = Container(site, redis, "worker", "--name", "inside")
        stack.callback(worker.close)

        until(lambda: healthy(base) or api.process.poll() is not None or worker.process.poll() is not None, 30)
        assert api.process.poll() is None, api.log.read_text()
        assert worker.process.poll() is None, worker.log.read_text()
        assert prompt(base, "hello inside")["output"] == "hello inside"

        for pid in (api.pid, worker.pid, *children(worker.pid)):
            found = status_of(pid)
            assert found["Uid"].split() == [str(USER)] * 4
            assert (found["NoNewPrivs"], int(found["CapEff"], 16), int(found["CapBnd"], 16)) == ("1", 0, 0)
        assert status_of(api.pid)["NSpid"].split()[-1] == "1"

        words = " ".join(f"w{i}" for i in range(30))
        following = stream(base, words, "--delay-ms=30")
        first = following.next()
        assert worker.told(signal.SIGTERM) == 0, worker.log.read_text()
        assert whole([first, *following.rest()]) == words
        assert api.told(signal.SIGTERM) == 0, api.log.read_text()


def test_a_worker_of_another_user_than_the_apis_serves_it_and_is_kept_out_of_what_is_not_its_own(site):
    with serving(workers=0) as service:
        service.redis.folder.chmod(0o755)
        (service.redis.folder / "redis.sock").chmod(0o777)
        base = service.apis[0][1]
        worker = Container(site, service.redis, "worker", "--name", "inside", **service.config)
        try:
            until(lambda: healthy(base) or worker.process.poll() is not None, 30)
            assert worker.process.poll() is None, worker.log.read_text()
            assert status_of(service.apis[0][0].pid)["Uid"].split()[0] == "0"
            assert status_of(worker.pid)["Uid"].split()[0] == str(USER)

            words = " ".join(f"w{i}" for i in range(200))
            following = stream(base, words, "--delay-ms=50")
            following.next()
            run_id = following.status.get(timeout=10)[1]["x-run-id"]
            assert httpx.delete(f"{base}/api/v1/runs/{run_id}").status_code < 300
            assert following.rest()[-1]["content"]["code"] == "cancelled"

            closed = service.redis.folder / "closed"
            closed.mkdir(mode=0o700)
            refused = prompt(base, "hello", workdir=str(closed))
            assert refused["status"] == 400
            assert "closed to the user that the worker runs as" in refused["error"]["message"]
        finally:
            worker.close()


def healthy(base: str) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return bool(httpx.get(base + "/health").json()["status"] == "ok")
    return False


def test_the_health_of_a_worker_is_whether_its_host_is_announced(site, redis):
    def told(host: str) -> tuple[int, str]:
        command = [
            str(TOOLS / "packages" / "bin" / "python"),
            "-m",
            "shared.cli",
            "worker",
            "--healthy",
            "--name",
            host,
        ]
        env = {"PYTHONPATH": str(site), "HOME": "/nonexistent", "CLINVK_REDIS_URL": redis.url}
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=30, check=False)
        return done.returncode, done.stderr

    worker = Container(site, redis, "worker", "--name", "inside")
    try:
        until(lambda: told("inside")[0] == 0 or worker.process.poll() is not None, 30)
        assert told("inside") == (0, "")
        assert told("elsewhere") == (1, "no live worker of elsewhere is announced\n")
        redis.kill()
        assert told("inside")[0] == 1
    finally:
        worker.close()
