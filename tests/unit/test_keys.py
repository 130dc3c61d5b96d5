"""API keys: what they may do, how they are found, and how they change while the service lives."""

import asyncio
import hashlib
import logging
import sys
from pathlib import Path

import pytest

import api.rotation
from api.keys import Key, Keyring
from api.rotation import Reading, Rotation
from shared import gopass
from shared.config import ApiKey
from shared.config_sources import load
from shared.errors import ConfigError, PermissionDenied
from shared.key_sources import read_keys
from shared.run import RunSpec
from tests.system.service import until

HOME = {"HOME": "/nonexistent"}


def ring(*entries: ApiKey) -> Keyring:
    return Keyring(Key.of(entry) for entry in entries)


def hashed(text: str) -> str:
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


# -- finding


def test_a_key_is_found_by_its_text_whether_it_stands_plain_or_as_a_hash():
    keys = ring(ApiKey(key="plain", name="a"), ApiKey(key=hashed("secret"), name="b", role="admin"))

    plain, secret = keys.find(b"plain"), keys.find(b"secret")

    assert plain is not None
    assert secret is not None
    assert (plain.tenant, plain.admin, secret.tenant, secret.admin) == ("a", False, "b", True)
    assert keys.find(hashed("secret").encode()) is None, "the hash itself opens nothing"
    assert keys.find(b"") is keys.find(b"plai") is keys.find(b"plain ") is None


def test_finding_a_key_among_ten_thousand_is_the_same_work_as_among_one_and_for_a_near_miss_as_for_a_far_one():
    def steps(keys: Keyring, value: bytes) -> int:
        """Calls that it makes, of Python's and C's functions."""
        seen: list[str] = []
        sys.setprofile(lambda *told: seen.append(told[1]))
        try:
            keys.find(value)
        finally:
            sys.setprofile(None)
        return len(seen)

    one, many = ring(ApiKey(key="k")), ring(*(ApiKey(key=f"k{number}") for number in range(10_000)))

    assert steps(one, b"no such key") == steps(many, b"no such key") == steps(many, b"k99999")


def test_a_service_that_had_keys_never_needs_none():
    keys = ring(ApiKey(key="k"))
    keys.replace([])

    assert keys.required
    assert keys.find(b"k") is None


# -- what a key may do


def spec(**fields: object) -> RunSpec:
    return RunSpec(**{"id": "run_1", "tenant": "t", "backend": "echo", "prompt": "p", **fields})  # type: ignore[arg-type]  # any field


@pytest.mark.parametrize(
    ("limits", "fields", "names"),
    [
        ({"allowed_backends": ["claude"]}, {}, "'echo'"),
        ({"allow_extra_flags": False}, {"extra": ("--words=3",)}, "extra"),
        ({"allowed_workdir_prefixes": ["/srv/a"]}, {"workdir": "/srv/b"}, "/srv/b"),
        ({"allowed_workdir_prefixes": ["/srv/a"]}, {"workdir": "/srv/ab"}, "/srv/ab"),
        ({"allowed_workdir_prefixes": ["/srv/a"]}, {"workdir": "/srv/a/../b"}, "/srv/b"),
        ({"allowed_workdir_prefixes": ["/srv/a"]}, {"workdir": "/srv/a", "add_dirs": ("/etc",)}, "add_dirs[0]"),
    ],
)
def test_what_a_key_may_not_do_is_refused_by_name(limits, fields, names):
    key = Key.of(ApiKey(key="k", **limits))

    with pytest.raises(PermissionDenied) as error:
        key.granted(spec(**fields))

    assert names.rpartition("/")[2] in error.value.message
    assert error.value.details["field"]


def test_what_a_key_may_do_goes_with_the_run_to_its_worker():
    key = Key.of(
        ApiKey(key="k", allowed_workdir_prefixes=["/srv/a/"], max_concurrent_runs=3, allowed_backends=["echo"])
    )

    granted = key.granted(spec(workdir="/srv/a/b"))

    assert (granted.key, granted.key_window, granted.workdir_prefixes) == (key.id, 3, ("/srv/a/",))
    assert "k" not in granted.key.removeprefix("key-")


# -- lines of a file, and gopass


def lines(tmp_path, text):
    file = tmp_path / "keys"
    file.write_text(text)
    return read_keys(load(None, HOME | {"CLINVK_SERVER__API_KEYS_FILE": str(file)}).config, {})


def test_a_line_of_a_file_may_hold_a_name_a_role_and_limits(tmp_path):
    found = lines(
        tmp_path,
        f"# people\n{hashed('x')} team a role=admin\n\nb= ci rate_limit_rps=2.5 max_concurrent_runs=4 "
        "allowed_backends=claude:codex allowed_workdir_prefixes=/srv/a:/srv/b allow_extra_flags=false\n",
    )

    assert found == [
        ApiKey(key=hashed("x"), name="team a", role="admin"),
        ApiKey(
            key="b=",
            name="ci",
            rate_limit_rps=2.5,
            max_concurrent_runs=4,
            allowed_backends=["claude", "codex"],
            allowed_workdir_prefixes=["/srv/a", "/srv/b"],
            allow_extra_flags=False,
        ),
    ]


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        (
            "{key: SECRET, name: ci, allowed_backends: []}",
            "'ci'): allowed_backends names nothing; name what this key may",
        ),
        ("{key: SECRET, allowed_workdir_prefixes: []}", "leave allowed_workdir_prefixes out for no limit"),
        ("{key: SECRET, allowed_backends: }", "allowed_backends is empty; it must be a list of claude, codex"),
        (
            "{key: SECRET, allowed_backends: [SECRET]}",
            "allowed_backends has a wrong value; it must be a list of claude",
        ),
        ("{key: SECRET, role: root}", "entry 2: role is 'root'; it must be user or admin"),
        ("{key: SECRET, rate_limit_rps: 0}", "rate_limit_rps is 0; it must be a number above 0"),
        ("{key: SECRET, max_concurrent_runs: 1.5}", "max_concurrent_runs is 1.5; it must be a whole number from 1"),
        ("{key: SECRET, name: " + "n" * 300 + "}", "(302 characters); it must be 1 to 100 characters"),
        ("{key: [SECRET], name: ci}", "'ci'): key has a wrong value"),
        ("{key: SECRET, rol: admin}", "unknown field; did you mean 'role'?"),
        ("{SECRET: ci}", "entry 2 has no `key`"),
        ("sha512:SECRET", "digest of another kind"),
        ("SHA256:SECRET", "64 small hex digits"),
    ],
)
def test_what_is_wrong_in_an_entry_is_told_with_its_number_its_name_and_its_field(tmp_path, entry, says):
    file = tmp_path / "config.yaml"
    file.write_text(f"server:\n  api_keys:\n    - first\n    - {entry}\n")

    with pytest.raises(ConfigError) as error:
        load(file, HOME)

    assert f"{file} line 2: server.api_keys" in error.value.message or "server.api_keys: a key" in error.value.message
    assert says in error.value.message
    assert "SECRET" not in error.value.message


def test_a_list_that_came_to_name_nothing_keeps_the_keys_that_were(tmp_path, caplog):
    file = tmp_path / "config.yaml"
    file.write_text("server: {api_keys: [{key: k, allowed_backends: [codex]}]}")
    keys = ring(*read_keys(load(file, HOME).config, {}))

    def read() -> Reading:
        return Reading([Key.of(one) for one in read_keys(load(file, HOME).config, {})], [str(file)])

    file.write_text("server: {api_keys: [{key: k, allowed_backends: []}]}")

    assert asyncio.run(Rotation(keys, read, files=[str(file)], every_s=60).read()) is False

    assert "allowed_backends names nothing" in caplog.text
    kept = keys.find(b"k")
    assert kept is not None
    assert not kept.may_use("claude")


@pytest.mark.parametrize("text", ["sha256sum-of-nothing", "sharp-key", "a:b", "md5sum", "2bornot2b", "argon"])
def test_a_plain_key_that_only_begins_like_a_digest_is_a_key(text):
    assert read_keys(load(None, HOME | {"CLINVK_API_KEYS": text}).config, {}) == [ApiKey(key=text)]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("SECRET a rol=admin", "unknown option 'rol'"),
        ("SECRET a role=root", "Invalid enum value 'root'"),
        ("SECRET a max_concurrent_runs=0", "max_concurrent_runs"),
        ("SECRET a|b", "name"),
        ("SECRET a allowed_workdir_prefixes=srv", "must begin with /"),
        ("sha256:SECRET", "64 small hex digits"),
        ("sha512:SECRET", "digest of another kind"),
        ("$2b$12$SECRET", "digest of another kind"),
        ("SECRET a allowed_backends=", "allowed_backends"),
        ("SECRET a allowed_workdir_prefixes=", "allowed_workdir_prefixes"),
        ("SECRET a\nSECRET b", "stands twice"),
        (f"SECRET a\n{hashed('SECRET')} a role=admin", "stands twice"),
        ("# nobody", "holds no key"),
    ],
)
def test_a_line_that_is_wrong_stops_the_start_and_shows_no_key(tmp_path, line, says):
    with pytest.raises(ConfigError) as error:
        lines(tmp_path, line)

    assert says in error.value.message
    assert "SECRET" not in error.value.message


@pytest.fixture
def fake_gopass(tmp_path):
    """Puts a gopass on a PATH of its own; returns the environment to ask it with."""

    def make(script: str) -> dict[str, str]:
        program = tmp_path / "bin" / "gopass"
        program.parent.mkdir(exist_ok=True)
        program.write_text("#!/bin/sh\n" + script)
        program.chmod(0o755)
        return {"PATH": f"{program.parent}:/usr/bin:/bin", "HOME": str(tmp_path), "CLINVK_API_KEYS": "SECRET"}

    return make


def asked(environ):
    return read_keys(load(None, HOME | {"CLINVK_API_KEYS_GOPASS_PATH": "team/clinvk"}).config, environ)


def test_keys_come_from_gopass_as_lines_or_with_commas(fake_gopass):
    environ = fake_gopass('[ "$*" = "show -o team/clinvk" ] && echo "a,b" && echo "c team role=admin"')

    assert asked(environ) == [ApiKey(key="a"), ApiKey(key="b"), ApiKey(key="c", name="team", role="admin")]


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("echo 'Error: no such entry' >&2; exit 11", "exit code 11): Error: no such entry"),
        ("exit 0", "holds no key"),
        ("printf '\\377'", "is not text"),
    ],
)
def test_a_gopass_that_fails_or_has_nothing_stops_the_start(fake_gopass, script, says):
    with pytest.raises(ConfigError) as error:
        asked(fake_gopass(script))

    assert says in error.value.message


def test_a_missing_gopass_stops_the_start(tmp_path):
    with pytest.raises(ConfigError, match="no gopass on PATH"):
        asked({"PATH": str(tmp_path)})


def living(pid):
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def test_gopass_is_waited_for_only_so_long_and_its_helpers_end_with_it(fake_gopass, tmp_path):
    environ = fake_gopass(f"sleep 60 & echo $! > {tmp_path}/helper; wait")

    with pytest.raises(ConfigError, match=r"within 0\.3 s"):
        gopass.show("team/clinvk", environ, limit_s=0.3)

    helper = int((tmp_path / "helper").read_text())
    until(lambda: not living(helper))


def test_gopass_is_not_given_the_secrets_of_the_service(fake_gopass):
    assert gopass.show("x", fake_gopass("env")).count("SECRET") == 0


# -- rotation


def rotation(ring, file, environ=None):
    config = load(None, HOME | {"CLINVK_SERVER__API_KEYS_FILE": str(file)}).config
    files = (str(file),)

    def read() -> Reading:
        return Reading([Key.of(one) for one in read_keys(config, environ or {})], files)

    return Rotation(ring, read, files=files, every_s=60)


def test_a_changed_file_is_read_again_without_being_asked(tmp_path, monkeypatch):
    monkeypatch.setattr(api.rotation, "_LOOK_EVERY_S", 0.01)
    file = tmp_path / "keys"
    file.write_text("old\n")
    keys = ring(ApiKey(key="old"))

    async def main() -> None:
        running = asyncio.create_task(rotation(keys, file).run())
        new = tmp_path / "new"
        new.write_text("new\n")
        new.rename(file)
        async with asyncio.timeout(10):
            while keys.find(b"new") is None:
                await asyncio.sleep(0.01)
        running.cancel()

    asyncio.run(main())

    assert keys.find(b"old") is None


@pytest.mark.parametrize("text", ["", "# nobody\n", "sha256:12\n", None])
def test_a_rotation_that_fails_keeps_the_old_keys_and_says_so_loudly(tmp_path, caplog, text):
    file = tmp_path / "keys"
    file.write_text("old\n")
    keys = ring(ApiKey(key="old"))
    turning = rotation(keys, file)
    if text is None:
        file.unlink()
    else:
        file.write_text(text)

    with caplog.at_level(logging.ERROR):
        assert asyncio.run(turning.read()) is False

    assert keys.find(b"old") is not None
    assert "COULD NOT BE READ AGAIN" in caplog.text


def test_a_fault_of_ours_does_not_end_the_rotation(caplog):
    keys = ring(ApiKey(key="old"))
    answers = iter([ZeroDivisionError("a fault"), Reading([Key.of(ApiKey(key="new"))])])

    def read() -> Reading:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    turning = Rotation(keys, read, every_s=60)

    assert asyncio.run(turning.read()) is False
    assert keys.find(b"old") is not None
    assert "COULD NOT BE READ AGAIN" in caplog.text
    assert asyncio.run(turning.read()) is True
    assert keys.find(b"old") is None


def test_who_is_asked_reads_at_once_and_says_so(tmp_path, fake_gopass, caplog):
    environ = fake_gopass(f"cat {tmp_path}/store")
    (tmp_path / "store").write_text("old")
    config = load(None, HOME | {"CLINVK_API_KEYS_GOPASS_PATH": "p"}).config
    keys = ring(ApiKey(key="old"))
    turning = Rotation(keys, lambda: Reading([Key.of(one) for one in read_keys(config, environ)]), every_s=3600)

    async def main() -> None:
        running = asyncio.create_task(turning.run())
        (tmp_path / "store").write_text("new")
        turning.ask()
        async with asyncio.timeout(10):
            while "as asked" not in caplog.text:
                await asyncio.sleep(0.01)
        running.cancel()

    with caplog.at_level(logging.INFO):
        asyncio.run(main())

    assert keys.find(b"old") is None
    assert keys.find(b"new") is not None


def test_sources_that_name_no_key_any_more_leave_those_that_are(caplog):
    keys = ring(ApiKey(key="old"))

    assert asyncio.run(Rotation(keys, lambda: Reading([]), every_s=60).read()) is False
    assert keys.find(b"old") is not None
    assert "no source names a key any more" in caplog.text


def test_a_service_without_keys_needs_them_as_soon_as_there_are_any(caplog):
    keys, answers = ring(), iter([Reading([]), Reading([Key.of(ApiKey(key="new"))])])
    turning = Rotation(keys, lambda: next(answers), every_s=60)

    assert asyncio.run(turning.read()) is True
    assert (keys.required, caplog.text) == (False, "")
    assert asyncio.run(turning.read()) is True
    assert keys.required
    assert "every request needs a key" in caplog.text


def test_what_has_changed_of_the_keys_is_told_by_their_ids(caplog):
    keys = ring(ApiKey(key="a"), ApiKey(key="b"), ApiKey(key="c"))
    now = [Key.of(one) for one in (ApiKey(key="b"), ApiKey(key="c", max_concurrent_runs=3), ApiKey(key="d"))]
    a, _, c = keys.all

    asyncio.run(Rotation(keys, lambda: Reading(now), every_s=60).read())

    assert caplog.messages == [
        f"API keys have changed: added {now[2].id}; gone {a}; with another name, role or limits {c}"
    ]


def test_a_file_that_the_configuration_names_from_now_on_is_looked_at_too(tmp_path, monkeypatch):
    monkeypatch.setattr(api.rotation, "_LOOK_EVERY_S", 0.01)
    first, second = tmp_path / "first", tmp_path / "second"
    second.write_text("x")
    keys = ring(ApiKey(key="k"))
    readings: list[str] = []

    def read() -> Reading:
        readings.append(second.read_text())
        return Reading([Key.of(ApiKey(key="k"))], [str(second)])

    turning = Rotation(keys, read, files=[str(first)], every_s=3600)

    async def main() -> None:
        running = asyncio.create_task(turning.run())
        async with asyncio.timeout(10):
            first.write_text("changed")
            while "x" not in readings:
                await asyncio.sleep(0.01)
            second.write_text("yz")
            while readings[-1] != "yz":
                await asyncio.sleep(0.01)
        running.cancel()

    asyncio.run(main())
