"""`clinvk serve` on one machine: up in seconds with nothing installed, and gone as a whole, whichever part dies."""

import shutil
import signal
import tempfile
import time
from pathlib import Path

import httpx
import pytest

from tests.system.service import (
    BASE_ENV,
    START_S,
    Proc,
    children,
    free_port,
    kill_pid,
    living,
    prompt,
    run,
    stream,
    submit,
    until,
)

pytestmark = pytest.mark.processes


class Laptop:
    def __init__(self, **env: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="clinvk-laptop-"))
        self.marker = f"CLINVK_TEST_MARK={self.folder.name}"
        self.env = {**BASE_ENV, "HOME": str(self.folder), "CLINVK_TEST_MARK": self.folder.name, **env}
        self.procs: list[Proc] = []

    def start(self) -> str:
        port = free_port()
        begun = time.monotonic()
        proc = Proc(["serve", "--port", str(port)], self.env, self.folder / f"{len(self.procs)}.log")
        self.procs.append(proc)
        until(lambda: "is ready" in proc.log.read_text() or not proc.alive, START_S)
        self.took_s = time.monotonic() - begun
        assert proc.alive, proc.log.read_text()
        return f"http://127.0.0.1:{port}"

    def gone(self) -> bool:
        return not living(self.marker)

    def close(self) -> None:
        for proc in self.procs:
            if proc.alive:
                proc.kill()
        until(self.gone, 30)
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture
def laptop():
    made = Laptop()
    yield made
    made.close()


def test_one_command_answers_through_the_queue_and_says_what_to_try(laptop):
    base = laptop.start()

    assert prompt(base, "hello there")["output"] == "hello there"
    said = laptop.procs[0].log.read_text()
    assert "curl" in said
    assert "claude is not on the PATH" in said
    assert "echo" in said
    assert httpx.get(base + "/health").json()["status"] == "ok"
    page = httpx.get(base + "/docs").text
    assert "//" not in page.replace("<!doctype", "")
    assert httpx.get(base + "/docs/swagger-ui-bundle.js").status_code == 200
    assert "/api/v1/prompt" in httpx.get(base + "/openapi.json").json()["paths"]


def test_ctrl_c_and_sigterm_end_all_of_it_and_the_data_is_there_at_the_next_start(laptop):
    base = laptop.start()
    run_id = prompt(base, "kept")["run_id"]

    laptop.procs[0].send(signal.SIGINT)
    assert laptop.procs[0].wait(15) == 0
    until(laptop.gone, 5)
    base = laptop.start()

    assert run(base, run_id)["result"]["output"] == "kept"
    laptop.procs[1].send(signal.SIGTERM)
    assert laptop.procs[1].wait(15) == 0
    until(laptop.gone, 5)


@pytest.mark.parametrize("victim", ["serve", "redis", "warden", "celery"])
def test_whichever_dies_all_end_with_it_also_what_runs(laptop, victim):
    base = laptop.start()
    following = stream(base, "stay", "--hang")
    following.next()
    serve = laptop.procs[0].pid
    names = {Path(f"/proc/{pid}/exe").resolve().name: pid for pid in children(serve)}
    warden = next(pid for name, pid in names.items() if name.startswith("python"))
    redis = next(pid for name, pid in names.items() if not name.startswith("python"))
    pids = {"serve": serve, "redis": redis, "warden": warden, "celery": children(warden)[0]}

    kill_pid(pids[victim])

    until(laptop.gone, 10)  # without Redis, several commands in a row are each tried again for more than a second first


def test_a_second_serve_keeps_its_data_in_memory_and_says_so(laptop):
    laptop.start()

    base = laptop.start()

    assert "in memory" in laptop.procs[1].log.read_text()
    assert prompt(base, "second")["output"] == "second"


def test_it_waits_for_what_runs_and_a_second_signal_does_not(laptop):
    base = laptop.start()
    following = stream(base, " ".join("abcdefghij"), "--delay-ms=100")
    following.next()

    laptop.procs[0].send(signal.SIGTERM)

    assert following.rest()[-1]["type"] == "done"
    assert laptop.procs[0].wait(15) == 0
    base = laptop.start()
    waited_for = submit(base, "stay", "--hang")
    until(lambda: run(base, waited_for)["status"] == "running")
    laptop.procs[1].send(signal.SIGTERM)
    until(lambda: httpx.get(base + "/health").json()["status"] == "degraded")  # it has begun to end
    laptop.procs[1].send(signal.SIGTERM)
    laptop.procs[1].wait(15)
    until(laptop.gone, 5)


def test_a_wrong_configuration_is_one_line_and_exit_code_78(laptop):
    proc = Proc(["serve"], laptop.env | {"CLINVK_SERVER__PROT": "1"}, laptop.folder / "wrong.log")
    laptop.procs.append(proc)

    assert proc.wait() == 78
    assert proc.log.read_text().strip().count("\n") == 0
