"""A Redis that answers and refuses: every process says so in words at its start, and goes on trying where it has begun."""

import contextlib
import json
import socket
import subprocess
import threading

import httpx
import pytest
import redis

from tests.system.service import CLINVK, Proc, Service, free_port, prompt, until

pytestmark = [pytest.mark.redis, pytest.mark.processes]

SECRET = "not-the-password"


@pytest.fixture
def service():
    made = Service()
    with made.redis.client() as client:
        client.execute_command("ACL", "SETUSER", "few", "on", ">few", "~*", "&*", "-@all", "+ping")
        client.execute_command("ACL", "SETUSER", "deaf", "on", ">deaf", "~*", "resetchannels", "+@all")
        client.config_set("requirepass", "right")
        client.execute_command("AUTH", "right")
    made.socket = f"unix://{made.redis.folder / 'redis.sock'}"
    yield made
    made.close()


@pytest.fixture
def web_server():
    """No Redis at all."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                client = server.accept()[0]
                with client, contextlib.suppress(OSError):
                    client.recv(4096)
                    client.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    threading.Thread(target=serve, daemon=True).start()
    yield f"redis://127.0.0.1:{server.getsockname()[1]}"
    server.close()


def started(service: Service, url: str, *words: str) -> tuple[int, str]:
    env = service.env(CLINVK_REDIS_URL=url)
    done = subprocess.run([CLINVK, *words], env=env, capture_output=True, text=True, timeout=30, check=False)
    assert SECRET not in done.stdout + done.stderr
    return done.returncode, done.stdout + done.stderr


COMMANDS = {
    "serve": (78, ("serve", "--port", "0")),
    "worker": (78, ("worker", "--name", "host0")),
    "healthy": (1, ("worker", "--healthy")),
    "doctor": (1, ("doctor",)),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_refused_login_ends_the_start_of_every_command_with_words(service, command):
    code, words = COMMANDS[command]

    for login in (f"?password={SECRET}", f"?username=nobody&password={SECRET}", ""):
        ended, said = started(service, service.socket + login, *words)

        assert ended == code, said
        assert "refuses the login" in said
        assert "cannot reach" not in said


@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_no_redis_and_a_user_who_may_too_little_are_told_too(service, web_server, command):
    code, words = COMMANDS[command]

    ended, said = started(service, web_server, *words)
    limited, of_user = started(service, f"{service.socket}?username=few&password=few", *words)

    assert (ended, limited) == (code, code)
    assert "does not speak as Redis does" in said
    assert "User few has no permissions" in of_user


def test_a_redis_that_is_away_ends_a_start_that_may_be_tried_again(service):
    """78 would be for good under systemd: the host may only have come up before its Redis."""
    ended, said = started(service, f"redis://127.0.0.1:{free_port()}", "serve", "--port", "0")

    assert ended == 1
    assert "cannot reach Redis at 127.0.0.1:" in said
    assert "(redis.url)" in said


@pytest.mark.parametrize("command", ["serve", "worker"])
def test_a_user_who_may_not_listen_is_told_at_the_start(service, command):
    ended, said = started(service, f"{service.socket}?username=deaf&password=deaf", *COMMANDS[command][1])

    assert ended == 78
    assert "does not let this user" in said
    assert "channel" in said
    for line in said.splitlines():
        json.loads(line)


def test_a_login_that_is_refused_from_now_on_is_told_once_and_work_goes_on_when_it_is_right_again(service):
    service.config["CLINVK_REDIS_URL"] = f"{service.socket}?password=right"

    def lines(words: str) -> list[str]:
        logs = (path.read_text() for path in service.folder.glob("*.log"))
        return [line for text in logs for line in text.splitlines() if words in line]

    with redis.Redis.from_url(f"{service.socket}?password=right", single_connection_client=True) as client:
        base = service.api()
        env = service.env(home="host0")
        worker = Proc(["worker", "--name", "host0"], env, service.folder / "worker0.log")
        service.workers.append(worker)
        until(lambda: httpx.get(base + "/health").json()["workers"] == 1)
        assert prompt(base, "before")["output"] == "before"

        client.config_set("requirepass", "another")
        for kind in ("normal", "pubsub"):
            client.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")
        until(lambda: len(lines("refuses the login")) >= 2)
        until(lambda: httpx.get(base + "/health").status_code == 503)
        answer = httpx.post(base + "/api/v1/prompt", json={"backend": "echo", "prompt": "x"}, timeout=20)
        assert (answer.status_code, answer.json()["detail"]) == (503, "the store refuses this service")
        client.config_set("requirepass", "right")

        until(lambda: len(lines("is back after")) >= 2, 30)
        until(lambda: prompt(base, "after").get("output") == "after", 60)
        assert len([line for line in lines("shared.outage") if "was reached" in line]) == 2
        assert worker.alive


def test_a_worker_whose_redis_is_away_waits_for_it():
    service = Service()
    try:
        service.redis.kill()
        worker = Proc(["worker", "--name", "host0"], service.env(home="host0"), service.folder / "worker0.log")
        service.workers.append(worker)
        until(lambda: "is away" in worker.log.read_text())
        service.redis.start()

        until(lambda: "is back after" in worker.log.read_text())
        base = service.api()
        assert until(lambda: prompt(base, "hello").get("output") == "hello", 40)
    finally:
        service.close()


def test_a_port_that_is_taken_is_one_line_and_starts_nothing(tmp_path):
    port = free_port()
    env = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(tmp_path)}
    with socket.create_server(("127.0.0.1", port)):
        words = [CLINVK, "serve", "--port", str(port)]
        done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=20, check=False)

    (line,) = done.stderr.splitlines()
    assert done.returncode == 1
    assert f"port {port} on 127.0.0.1 is in use by another process" in json.loads(line)["message"]
    assert done.stdout == ""
    assert not (tmp_path / ".clinvk" / "redis").exists()
