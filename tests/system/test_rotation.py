"""Keys that change while `clinvk serve` runs, by real signals and files; and the signal that a terminal sends as it goes."""

import contextlib
import fcntl
import json
import os
import pty
import signal
import subprocess
import termios
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from tests.system.service import CLINVK, Proc, Service, free_port, serving, until

pytestmark = [pytest.mark.redis, pytest.mark.processes]


def status(service: Service, key: str | None) -> int:
    headers = {} if key is None else {"x-api-key": key}
    return httpx.get(service.apis[0][1] + "/api/v1/runs", headers=headers).status_code


def hang_up(service: Service) -> None:
    """Returns when the signal has been acted upon."""
    process = service.apis[0][0]
    before = process.log.read_text().count("as asked")
    process.send(signal.SIGHUP)
    until(lambda: process.log.read_text().count("as asked") > before or not process.alive)
    assert process.alive, process.wait()


def changed(service: Service, times: int) -> None:
    """Returns when the keys have changed so often. A wrong key that is tried again and again would soon be told to wait."""
    until(lambda: service.logs().count("API keys have changed") >= times)


def put(file: Path, *keys: object, **server: object) -> None:
    """In one step, as the documents ask for."""
    new = file.with_suffix(".new")
    new.write_text(json.dumps({"server": {"api_keys": list(keys), **server}} if keys else {}))
    new.rename(file)


@pytest.mark.parametrize("config", [{}, {"CLINVK_API_KEYS": "k"}], ids=["no keys", "keys of the environment"])
def test_a_hangup_signal_ends_no_service_wherever_its_keys_come_from(config):
    with serving(workers=0, **config) as service:
        hang_up(service)
        hang_up(service)

        assert status(service, "k") == 200


def test_keys_of_the_configuration_change_in_a_running_service(tmp_path):
    file = tmp_path / "config.yaml"
    put(file, {"key": "old", "name": "team"})
    with serving(workers=0, CLINVK_CONFIG=str(file), CLINVK_API_KEYS="k-env") as service:
        assert [status(service, key) for key in ("old", "new", "k-env", None)] == [200, 401, 200, 401]

        put(file, {"key": "new", "name": "team"})
        changed(service, 1)
        assert [status(service, key) for key in ("new", "old", "k-env", None)] == [200, 401, 200, 401]

        moved = tmp_path / "keys"
        moved.write_text("moved\n")
        put(file, {"key": "third"}, api_keys_file=str(moved))
        changed(service, 2)
        assert [status(service, key) for key in ("moved", "third", "again")] == [200, 200, 401]
        moved.write_text("again\n")
        changed(service, 3)
        assert [status(service, key) for key in ("again", "third", "new", "moved")] == [200, 200, 401, 401]


@pytest.mark.parametrize("broken", ["server: {api_keys: [", "", "server: {prot: 1}", "server: {api_keys: []}"])
def test_a_configuration_that_is_broken_or_emptied_leaves_the_keys_as_they_are(tmp_path, broken):
    file = tmp_path / "config.yaml"
    put(file, "k")
    with serving(workers=0, CLINVK_CONFIG=str(file)) as service:
        file.write_text(broken)
        service.apis[0][0].send(signal.SIGHUP)

        until(lambda: "COULD NOT BE READ AGAIN" in service.logs())
        assert [status(service, key) for key in ("k", "other", None)] == [200, 401, 401]


def test_a_service_that_began_without_keys_needs_one_once_the_configuration_names_it(tmp_path):
    file = tmp_path / "config.yaml"
    put(file)
    with serving(workers=0, CLINVK_CONFIG=str(file)) as service:
        assert status(service, None) == 200

        put(file, "k")
        until(lambda: status(service, None) == 401)
        assert [status(service, key) for key in ("k", "other")] == [200, 401]
        assert httpx.get(service.apis[0][1] + "/api/v1/audit", headers={"x-api-key": "k"}).status_code == 403


@pytest.fixture
def gopass(tmp_path):
    """Says what stands in `keys`, once `go` is there; the number of times it was asked is that of lines in `asked`."""
    program = tmp_path / "bin" / "gopass"
    program.parent.mkdir()
    program.write_text(
        f"#!/bin/sh\necho x >>{tmp_path}/asked\nwhile [ ! -e {tmp_path}/go ]; do sleep 0.02; done\ncat {tmp_path}/keys\n"
    )
    program.chmod(0o755)
    return {"PATH": f"{program.parent}:/usr/bin:/bin", "CLINVK_API_KEYS_GOPASS_PATH": "team/clinvk"}


def test_keys_of_gopass_change_at_a_signal(tmp_path, gopass):
    (tmp_path / "go").touch()
    (tmp_path / "keys").write_text("old")
    with serving(workers=0, CLINVK_SERVER__API_KEYS_REFRESH_SECS="3600", **gopass) as service:
        (tmp_path / "keys").write_text("new")
        assert [status(service, key) for key in ("old", "new")] == [200, 401]

        hang_up(service)

        assert [status(service, key) for key in ("old", "new")] == [401, 200]


def test_a_signal_during_the_start_is_acted_upon_when_it_is_done(tmp_path, gopass):
    (tmp_path / "keys").write_text("k")
    service = Service(CLINVK_SERVER__API_KEYS_REFRESH_SECS="3600", **gopass)
    try:
        port = free_port()
        starting = Proc(["serve", "--port", str(port)], service.env(), service.folder / "api0.log")
        service.apis.append((starting, f"http://127.0.0.1:{port}"))
        until((tmp_path / "asked").exists)

        starting.send(signal.SIGHUP)
        (tmp_path / "go").touch()

        until(lambda: "as asked" in starting.log.read_text() or not starting.alive)
        assert starting.alive, starting.log.read_text()
        assert (tmp_path / "asked").read_text() == "x\n" * 2
    finally:
        service.close()


def on_a_terminal(service: Service, *, ignoring: bool) -> tuple["subprocess.Popen[bytes]", int, Callable[[], bytes]]:
    """`clinvk serve` on a terminal of its own: its process, the terminal's other end, and what has been read from it."""
    main, side = pty.openpty()

    def own() -> None:
        os.setsid()
        fcntl.ioctl(side, termios.TIOCSCTTY, 0)
        signal.signal(signal.SIGHUP, signal.SIG_IGN if ignoring else signal.SIG_DFL)

    process = subprocess.Popen(
        [CLINVK, "serve", "--port", "0"],
        env=service.env(),
        stdin=side,
        stdout=side,
        stderr=side,
        preexec_fn=own,  # noqa: PLW1509  # no other thread is at work here
    )
    os.close(side)
    os.set_blocking(main, False)
    seen = bytearray()

    def read() -> bytes:
        with contextlib.suppress(BlockingIOError):
            seen.extend(os.read(main, 65536))
        return bytes(seen)

    until(lambda: b"is ready" in read() or process.poll() is not None)
    assert process.poll() is None, read().decode()
    return process, main, read


def test_a_terminal_that_is_closed_ends_its_service_and_a_signal_alone_does_not():
    service = Service(CLINVK_LOG__FORMAT="text")
    try:
        process, main, read = on_a_terminal(service, ignoring=False)
        process.send_signal(signal.SIGHUP)
        until(lambda: b"as asked" in read() or process.poll() is not None)
        assert process.poll() is None

        os.close(main)

        assert process.wait(10) in (0, 120)  # 120 is Python's, whose last words have nowhere to go
    finally:
        service.close()


def test_what_was_started_to_outlive_its_terminal_does_and_still_hears_the_signal(tmp_path):
    file = tmp_path / "keys"
    file.write_text("old\n")
    service = Service(CLINVK_SERVER__API_KEYS_FILE=str(file))
    try:
        process, main, read = on_a_terminal(service, ignoring=True)
        base = "http://" + read().decode().partition("clinvk is ready on http://")[2].split()[0]
        os.close(main)
        file.write_text("new\n")
        process.send_signal(signal.SIGHUP)

        # It is the right key that is asked with again and again: a wrong one is soon told to wait.
        until(lambda: httpx.get(base + "/api/v1/runs", headers={"x-api-key": "old"}).status_code == 401)
        assert httpx.get(base + "/api/v1/runs", headers={"x-api-key": "new"}).status_code == 200
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()
        service.close()
