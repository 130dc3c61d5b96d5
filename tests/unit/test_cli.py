"""The `clinvk` command: help, exit codes, one line for what is wrong."""

from importlib.metadata import entry_points, version

import pytest
import yaml

from api.cli import warn_if_open
from shared import cli


@pytest.fixture
def clinvk(monkeypatch, capsys, tmp_path):
    """Runs a command; gives its exit code, stdout and stderr."""
    monkeypatch.setattr(cli.os, "environ", {"HOME": str(tmp_path)})

    def run(*words, **environ):
        monkeypatch.setattr(cli.os, "environ", {"HOME": str(tmp_path)} | environ)
        code = cli.main(words)
        return code, *capsys.readouterr()

    return run


@pytest.mark.parametrize("words", [(), ("--help",), ("-h",), ("help",)])
def test_help_names_every_command(clinvk, words):
    code, out, err = clinvk(*words)

    assert (code, err) == (0, "")
    for name in ("config show", "config check", "version", *entry_points(group="clinvk.commands").names):
        assert f"\n  {name} " in out


def test_the_version_is_that_of_the_package(clinvk):
    assert clinvk("version") == (0, f"clinvk {version('clinvk')}\n", "")


def test_an_unknown_command_is_a_usage_error_that_names_the_nearest(clinvk):
    code, out, err = clinvk("serv")

    assert (code, out) == (2, "")
    assert err == "clinvk: unknown command 'serv'; did you mean 'serve'?\n"


@pytest.mark.parametrize("words", [("config",), ("config", "set"), ("serve", "--no-such"), ("worker", "--no-such")])
def test_wrong_usage_is_2(clinvk, words):
    code, _, err = clinvk(*words)

    assert code == 2
    assert "usage: clinvk" in err


@pytest.mark.parametrize("command", ["serve", "worker", "config"])
def test_every_command_has_its_own_help(clinvk, command):
    code, out, _ = clinvk(command, "--help")

    assert code == 0
    assert f"usage: clinvk {command}" in out


@pytest.mark.parametrize(
    ("words", "environ"),
    [
        (("config", "check"), {"CLINVK_SERVER__PORT": "x"}),
        (("config", "check", "--config", "/nonexistent/c.yaml"), {}),
        (("config", "check"), {"CLINVK_API_KEYS": ""}),
    ],
)
def test_a_wrong_configuration_is_78_and_one_line(clinvk, words, environ):
    code, out, err = clinvk(*words, **environ)

    assert (code, out) == (78, "")
    assert err.startswith("clinvk: ")
    assert err.count("\n") == 1


def test_a_worker_without_redis_is_told_what_it_needs(clinvk):
    code, _, err = clinvk("worker")

    assert code == 78
    assert "CLINVK_REDIS_URL" in err


def test_a_worker_that_cannot_keep_data_is_told_so_once_and_does_not_begin(clinvk):
    code, _, err = clinvk("worker", CLINVK_REDIS_URL="redis://127.0.0.1:1/0", CLINVK_HOME="/proc/nowhere")

    assert code == 78
    assert "cannot keep data under CLINVK_HOME" in err
    assert err.count("\n") == 1


def test_config_show_prints_yaml_without_secrets(clinvk):
    code, out, err = clinvk("config", "show", CLINVK_API_KEYS="SECRET", CLINVK_REDIS_URL="redis://:SECRET@h")

    shown = yaml.safe_load(out)
    assert (code, err) == (0, "")
    assert "SECRET" not in out
    assert (shown["redis"]["url"], shown["server"]["port"]) == ("redis://***@h", 8080)


def test_config_check_says_ok_and_what_is_not_in_force(clinvk):
    code, out, err = clinvk("config", "check", CLINVK_SERVER__RATE_LIMIT_CLEANUP_SECS="5")

    assert (code, out) == (0, "ok: no file; defaults and environment only\n")
    assert "server.rate_limit_cleanup_secs is not yet in force" in err


def test_an_interrupt_is_no_traceback(clinvk, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "load", interrupted)

    assert clinvk("config", "check") == (130, "", "")


@pytest.mark.parametrize(
    ("host", "loud"),
    [
        *((name, False) for name in ("127.0.0.1", "127.0.0.2", "::1", "localhost")),
        *((name, True) for name in ("0.0.0.0", "::", "10.1.2.3", "gateway.example")),
    ],
)
@pytest.mark.parametrize("level", ["INFO", "ERROR"])
def test_listening_for_others_without_keys_is_said_whatever_little_is_logged(host, loud, level, caplog):
    caplog.set_level(level)
    warn_if_open(host, required=False)
    logged = caplog.text
    caplog.clear()
    warn_if_open(host, required=True)

    assert (f"listening on {host} without API keys" in logged) == loud
    assert caplog.text == ""
