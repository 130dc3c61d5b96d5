"""`clinvk top` over a real service: through Redis, through the API, and on a terminal."""

import contextlib
import json
import os
import pty
import subprocess

import httpx
import pytest

from tests.system.service import BASE_ENV, CLINVK, serving, stream, until

pytestmark = [pytest.mark.redis, pytest.mark.processes]

KEYS = "[{key: ka, name: a, role: admin}, {key: kb, name: b}]"


def asked(*words: str, **env: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [CLINVK, "top", *words], env={**BASE_ENV, **env}, capture_output=True, text=True, timeout=60, check=False
    )


def top(*words: str, **env: str) -> tuple[int, str]:
    done = asked(*words, **env)
    assert done.stderr == ""
    return done.returncode, done.stdout


def test_redis_and_the_api_show_the_same_run_and_worker(tmp_path):
    with serving() as service:
        base = service.apis[0][1]
        following = stream(base, "a", "--hang")
        following.next()

        by_redis = json.loads(top("--json", HOME=str(tmp_path), CLINVK_REDIS_URL=service.redis.url)[1])
        code, text = top("--once", "--url", base, HOME=str(tmp_path))
        by_http = json.loads(top("--json", "--url", base, HOME=str(tmp_path))[1])
        following.hang_up()

    run_id = by_redis["runs"][0]["id"]
    assert (by_redis["running"], by_redis["status"]) == (1, "ok")
    assert by_redis["hosts"][0]["host"] == "host0"
    assert by_redis["hosts"][0]["memory_bytes"] > 1 << 20
    assert code == 0
    assert run_id in text
    assert "host0" in text
    assert by_http["runs"][0]["id"] == run_id
    assert by_http["hosts"][0]["host"] == "host0"


def test_what_a_key_may_not_see_is_said(tmp_path):
    with serving(CLINVK_SERVER__API_KEYS=KEYS) as service:
        base = service.apis[0][1]
        until(lambda: httpx.get(f"{base}/health").json()["status"] == "ok")  # the worker is known there too
        _, admin = top("--once", "--url", base, HOME=str(tmp_path), CLINVK_API_KEY="ka")
        _, user = top("--once", "--url", base, HOME=str(tmp_path), CLINVK_API_KEY="kb")

    assert "host0" in admin
    assert "host0" not in user
    assert "the workers are for admins" in user
    assert "the workers are not shown" in user
    assert "no worker is connected" not in user


def test_a_wrong_key_and_a_missing_one_are_said_and_end_with_1(tmp_path):
    with serving(workers=0, CLINVK_SERVER__API_KEYS=KEYS) as service:
        url = ("--url", service.apis[0][1])
        wrong = asked("--once", *url, HOME=str(tmp_path), CLINVK_API_KEY="wr0ng-key")
        missing = asked("--json", *url, HOME=str(tmp_path))

    assert (wrong.returncode, missing.returncode) == (1, 1)
    assert "the key in CLINVK_API_KEY is not known there (401)" in wrong.stderr
    assert "is not known there" in wrong.stdout
    assert "wr0ng-key" not in wrong.stdout + wrong.stderr
    assert "a key is needed (401)" in missing.stderr
    assert json.loads(missing.stdout)["status"] == "unknown"


def test_an_api_that_is_away_is_said_and_ends_with_1(tmp_path):
    done = asked("--once", "--url", "http://127.0.0.1:9", HOME=str(tmp_path))

    assert done.returncode == 1
    assert "http://127.0.0.1:9: ConnectionRefusedError" in done.stderr
    assert "ConnectionRefusedError" in done.stdout
    assert "no run is under way" not in done.stdout


def test_on_a_terminal_it_lives_until_q_and_leaves_the_terminal_as_it_was(tmp_path):
    with serving() as service:
        main, side = pty.openpty()
        process = subprocess.Popen(
            [CLINVK, "top", "--interval", "0.2"],
            env={**BASE_ENV, "HOME": str(tmp_path), "CLINVK_REDIS_URL": service.redis.url, "TERM": "xterm"},
            stdin=side,
            stdout=side,
            stderr=side,
        )
        os.set_blocking(main, False)
        seen = bytearray()

        def read() -> bytes:
            with contextlib.suppress(BlockingIOError):
                seen.extend(os.read(main, 65536))
            return bytes(seen)

        until(lambda: read().count(b"host0") >= 2)
        os.write(main, b"q")
        until(lambda: b"\x1b[?1049l" in read())  # a terminal that nobody reads from fills up
        code = process.wait(10)
        out = read()
        os.close(main)
        os.close(side)

    assert code == 0
    assert out.startswith(b"\x1b[?1049h")
    assert out.rstrip().endswith(b"\x1b[?1049l")
