"""What the doctor makes of what it finds."""

from pathlib import Path

import msgspec
import pytest

from shared.config import BackendConfig, Config, Server
from shared.host import BackendState, Instance, Readiness
from shared.warm import WarmState
from worker import doctor
from worker.doctor import RedisFacts
from worker.examine import examine

GOOD = {
    "redis_version": "7.2.4",
    "role": "master",
    "cluster_enabled": "0",
    "aof_enabled": "1",
    "maxmemory_policy": "noeviction",
    "maxmemory": "0",
}


def judged(fleet=(), round_trip_s=0.001, skew_s=0.0, config=None, **info):
    facts = RedisFacts(
        round_trip_s=round_trip_s, skew_s=skew_s, info={**GOOD, **info}, config=config or {}, fleet=fleet
    )
    return {check.about: check for check in doctor.redis(facts)}


def test_a_good_redis_is_well():
    found = judged(config={"client-output-buffer-limit": "normal 0 0 0 slave 1 1 1 pubsub 268435456 134217728 60"})

    assert {check.state for check in found.values()} == {"ok", "note"}  # no worker is connected
    assert found["pubsub buffer"].found == "256 MB, 128 MB for a while"


@pytest.mark.parametrize(
    ("about", "state", "given"),
    [
        ("redis version", "failed", {"redis_version": "5.0.14"}),
        ("redis role", "failed", {"role": "slave"}),
        ("redis cluster", "failed", {"cluster_enabled": "1"}),
        ("persistence", "warning", {"aof_enabled": "0"}),
        ("eviction", "failed", {"maxmemory_policy": "allkeys-lru", "maxmemory": "1000"}),
        ("eviction", "warning", {"maxmemory_policy": "allkeys-lru"}),
        ("redis", "warning", {"round_trip_s": 0.2}),
        ("clock", "warning", {"skew_s": -7.0}),
        ("pubsub buffer", "warning", {"config": {"client-output-buffer-limit": "pubsub 33554432 8388608 60"}}),
    ],
)
def test_what_is_wrong_with_redis_is_named_with_what_to_do(about, state, given):
    check = judged(**given)[about]

    assert check.state == state
    assert check.advice


def test_the_fleet_speaks_for_itself():
    states = (
        BackendState(name="claude", readiness=Readiness.READY, version="2.1"),
        BackendState(name="codex", readiness=Readiness.NOT_LOGGED_IN, reason="log in there", warm=WarmState()),
    )
    one = Instance(id="i", host="h1", pid=1, version="0", started_at=0, slots=8, backends=states)

    found = judged(fleet=[one])

    assert (found["h1 claude"].state, found["h1 claude"].found) == ("ok", "ready 2.1")
    assert (found["h1 codex"].state, found["h1 codex"].advice) == ("warning", "log in there")
    assert "warm" not in found["h1 codex"].found, "it would serve nobody"


@pytest.mark.parametrize(
    ("warm", "says", "state"),
    [
        (WarmState(kept=2, hits=7), "ready 2.1, warm: 2 kept, 7 runs on them", "ok"),
        (WarmState(cold_because="too old"), "ready 2.1, warm: 0 kept, 0 runs on them, cold: too old", "warning"),
        (
            WarmState(cold_because="backends.codex.warm.mode is off"),
            "ready 2.1, warm: 0 kept, 0 runs on them, cold: backends.codex.warm.mode is off",
            "note",
        ),
    ],
)
def test_the_fleet_says_what_it_keeps_warm_and_why_it_does_not(warm, says, state):
    states = (BackendState(name="codex", readiness=Readiness.READY, version="2.1", warm=warm),)
    one = Instance(id="i", host="h1", pid=1, version="0", started_at=0, slots=8, backends=states)

    check = judged(fleet=[one])["h1 codex"]
    assert check.found == says
    assert check.state == state


def test_a_login_is_a_variable_or_a_file_and_is_never_shown(tmp_path):
    nothing = doctor.login("codex", {"HOME": str(tmp_path)})
    by_variable = doctor.login("codex", {"HOME": str(tmp_path), "CODEX_API_KEY": "SECRET"})
    (tmp_path / ".codex").mkdir()
    (tmp_path / ".codex" / "auth.json").write_text("SECRET")
    by_file = doctor.login("codex", {"HOME": str(tmp_path)})

    assert (nothing.state, by_variable.state, by_file.state) == ("warning", "ok", "ok")
    assert "SECRET" not in doctor.text([nothing, by_variable, by_file])


def test_a_home_that_others_may_write_to_fails_and_keys_that_all_may_read_are_a_warning(tmp_path):
    tmp_path.chmod(0o777)
    file = tmp_path / "config.yaml"
    file.write_text("")
    file.chmod(0o644)
    found = {check.about: check for check in doctor.home(tmp_path, file, Config())}
    tmp_path.chmod(0o700)
    file.chmod(0o600)
    mended = {check.about: check.state for check in doctor.home(tmp_path, file, Config())}

    assert (found["home"].state, found["files"].state) == ("failed", "warning")
    assert mended["home"] == "ok"
    assert "files" not in mended


@pytest.mark.parametrize(
    ("text", "warned"),
    [("# people\nsha256:ab first\n\nsha256:cd\n", False), ("sha256:ab\nplain b\n", True), ("# none\n", True)],
)
def test_a_file_of_digests_alone_may_be_read_by_everybody(tmp_path, text, warned):
    file = tmp_path / "api.keys"
    file.write_text(text)
    file.chmod(0o644)
    config = msgspec.structs.replace(Config(), server=Server(api_keys_file=str(file)))

    found = [check for check in doctor.home(tmp_path, None, config) if check.about == "files"]

    assert bool(found) == warned


def test_keys_that_can_be_guessed_are_a_warning_and_digests_are_not(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(f"server: {{api_keys: [fifteen-letters, sixteen-letters1, sha256:{'a' * 64}]}}")
    file.chmod(0o600)
    environ = {"HOME": str(tmp_path), "CLINVK_HOME": str(tmp_path), "PATH": "/nonexistent"}

    found = {check.about: check for check in examine(file, environ)[0]}["keys"]

    assert (found.state, found.found) == ("warning", "3, 1 of them shorter than 16 characters")
    assert "openssl rand" in found.advice
    assert "fifteen" not in doctor.text([found])


def test_a_machine_that_lacks_what_a_worker_needs():
    poor = {c.about: c.state for c in doctor.machine(as_root=True, files=256, pidfds=False, tags=True)}
    good = {c.about: c.state for c in doctor.machine(as_root=False, files=65536, pidfds=True, tags=True)}

    assert poor == {"descriptors": "warning", "kernel": "failed", "user": "warning"}
    assert good == {"descriptors": "ok"}


@pytest.mark.parametrize(
    ("host", "keys", "state"), [("127.0.0.1", 0, "note"), ("0.0.0.0", 0, "failed"), ("0.0.0.0", 1, "ok")]
)
def test_an_open_port_without_keys_fails(host, keys, state):
    config = msgspec.structs.replace(Config(), server=Server(host=host))

    assert doctor.gate(config, keys=keys)[0].state == state


def test_the_text_has_columns_and_a_sum():
    said = doctor.text(
        [
            doctor.Check(about="a", state="failed", found="x", advice="do"),
            doctor.Check(about="bb", state="ok", found="y"),
        ]
    )

    assert said == "failed   a   x\n             -> do\nok       bb  y\n1 failed, 0 warnings"


def codex_config(folder, text):
    (folder / ".codex").mkdir(exist_ok=True)
    (folder / ".codex" / "config.toml").write_text(text)


OWN = 'model_provider = "mine"\n[model_providers.mine]\nbase_url = "https://models.example/v1"\n'


@pytest.mark.parametrize(
    ("text", "environ", "passed", "state", "words"),
    [
        (
            OWN + 'env_key = "MINE_KEY"',
            {"MINE_KEY": "SECRET"},
            ["MINE_*"],
            "ok",
            "MINE_KEY is set, for the provider 'mine'",
        ),
        (OWN + 'env_key = "MINE_KEY"', {"MINE_KEY": "SECRET"}, [], "warning", "MINE_KEY is set here alone"),
        (OWN + 'env_key = "MINE_KEY"', {}, ["MINE_KEY"], "warning", "wants MINE_KEY, which is not set"),
        (OWN, {}, [], "ok", "'mine' of codex's config.toml takes no key"),
        ('profile = "p"\n[profiles.p]\n' + OWN, {}, [], "ok", "takes no key"),
        ('model_provider = "', {}, [], "warning", "is not valid TOML"),
    ],
)
def test_a_provider_of_codexs_own_configuration_brings_its_own_login(tmp_path, text, environ, passed, state, words):
    codex_config(tmp_path, text)
    config = Config(backends={"codex": BackendConfig(env_passthrough=passed)})

    found = doctor.of_codex(config, {"HOME": str(tmp_path), **environ})

    assert found is not None
    assert (found.about, found.state) == ("codex login", state)
    assert words in found.found
    assert bool(found.advice) == (state == "warning")
    assert "SECRET" not in doctor.text([found])


def test_the_variable_of_a_provider_may_be_set_for_codex_alone(tmp_path):
    codex_config(tmp_path, OWN + 'env_key = "MINE_KEY"')
    config = Config(backends={"codex": BackendConfig(env={"MINE_KEY": "SECRET"})})

    found = doctor.of_codex(config, {"HOME": str(tmp_path)})

    assert found is not None
    assert found.state == "ok"


def test_codexs_own_way_to_log_in_is_left_to_its_files_and_variables(tmp_path):
    assert doctor.of_codex(Config(), {"HOME": str(tmp_path)}) is None
    for text in ('model = "x"', 'model_provider = "openai"', OWN + "requires_openai_auth = true"):
        codex_config(tmp_path, text)
        assert doctor.of_codex(Config(), {"HOME": str(tmp_path)}) is None


@pytest.mark.parametrize("place", ["/proc/nowhere", "/proc/self/task/x/y", "/dev/null/home"])
def test_a_home_that_cannot_be_made_fails(place):
    (found,) = [check for check in doctor.home(Path(place), None, Config()) if check.about == "home"]

    assert found.state == "failed"
    assert f"{place} cannot be made" in found.found


def test_a_home_that_can_be_made_is_not_made(tmp_path):
    (found,) = [check for check in doctor.home(tmp_path / "a" / "b", None, Config()) if check.about == "home"]

    assert (found.state, found.found) == ("ok", f"{tmp_path / 'a' / 'b'} will be made")
    assert list(tmp_path.iterdir()) == []
