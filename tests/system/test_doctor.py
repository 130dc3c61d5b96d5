"""`clinvk doctor` as an operator starts it."""

import json
import subprocess

import pytest

from tests.servers import RedisServer
from tests.system.service import BASE_ENV, CLINVK, Service

pytestmark = [pytest.mark.redis, pytest.mark.processes]


def asked(*words: str, **env: str) -> tuple[int, str]:
    done = subprocess.run(
        [CLINVK, "doctor", *words], env={**BASE_ENV, **env}, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stderr == ""
    return done.returncode, done.stdout


def test_it_tells_programs_and_people_the_same_of_this_machine_redis_and_the_fleet(tmp_path):
    service = Service()
    try:
        service.worker()
        env = {k: v for k, v in service.env().items() if k not in BASE_ENV}

        code, out = asked("--json", **env)
        _, text = asked(**env)
    finally:
        service.close()

    told = json.loads(out)
    checks = {check["about"]: check for check in told["checks"]}
    assert (code, told["ok"]) == (0, True)
    assert checks["persistence"]["found"] == "append-only file"
    assert checks["echo"]["state"] == "ok"
    assert checks["claude"]["state"] == "warning"
    assert checks["host0 echo"]["state"] == "ok"
    assert checks["pubsub buffer"]["state"] == "warning"
    assert "claude              not on the PATH" in text.replace("warning  ", "") or "not on the PATH" in text


def test_a_redis_that_is_away_or_evicts_fails(tmp_path):
    server = RedisServer()
    try:
        client = server.client()
        client.config_set("maxmemory", "100mb")
        client.config_set("maxmemory-policy", "allkeys-lru")
        client.close()
        evicts, said = asked(HOME=str(tmp_path), CLINVK_REDIS_URL=server.url)
    finally:
        server.close()
    away, out = asked(HOME=str(tmp_path), CLINVK_REDIS_URL=server.url)

    assert evicts == 1
    assert "noeviction" in said
    assert away == 1
    assert "is it running" in out


def test_a_wrong_configuration_is_the_first_thing_it_says(tmp_path):
    code, out = asked("--json", HOME=str(tmp_path), CLINVK_SERVER__PROT="1")

    assert code == 78
    assert "CLINVK_SERVER__PORT" in json.loads(out)["checks"][0]["found"]


def test_alone_on_a_laptop_it_needs_no_redis(tmp_path):
    code, out = asked(HOME=str(tmp_path))

    assert code == 0, out
    assert "`clinvk serve` starts" in out


def test_it_makes_no_home_and_goes_on_where_none_can_be_made(tmp_path):
    home = tmp_path / "data"
    asked(HOME=str(tmp_path), CLINVK_HOME=str(home))
    _, out = asked(HOME=str(tmp_path), CLINVK_HOME="/proc/nowhere")  # root may write to /proc, as access(2) has it

    assert not home.exists()
    assert "/proc/nowhere" in out
    assert "redis" in out
