"""What no other test runs of the documents' examples; and every block is run by some test, or says that it is none."""

import os
import re
import shlex
import shutil
import signal
import subprocess

import httpx
import pytest
import yaml

from shared.config import ApiKey, Config, Server
from shared.config_sources import load
from shared.key_sources import read_keys
from tests.pages import PAGES, ROOT, Block, blocks, one
from tests.system import test_docs, test_readme, test_redis_ways, test_sdk_docs
from tests.system.service import BASE_ENV, Proc, Service, free_port, living, prompt, serving, until
from tests.system.test_spans import Collector

SEVERAL = [one(page, "sh", "clinvk worker") for page in ("README.md", "README.zh.md")]
MAKE = [one(page, "sh", "make test") for page in ("README.md", "README.zh.md")] + [one("docs/quickstart.md", "console")]
CONFIGURATION = one("docs/configuration.md", "yaml")
KEYS_IN_YAML = one("docs/api-keys.md", "yaml")
KEYS_IN_LINES = one("docs/api-keys.md", "keys")
NEW_KEYS = one("docs/deployment.md", "sh")
OPERATORS = [block for block in blocks("docs/deployment.md") if block.kind == "console"]
SPANS = one("docs/observability.md", "sh")
CLAIMED = {block.claim for block in (*SEVERAL, *MAKE, *OPERATORS)}
CLAIMED |= {block.claim for block in (CONFIGURATION, KEYS_IN_YAML, KEYS_IN_LINES, NEW_KEYS, SPANS)}


def commands(block: Block) -> list[list[str]]:
    """Without prompts and comments."""
    lines = [re.sub(r"^[$#] ", "", line) for line in block.text.splitlines()]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def name_of(block: Block) -> str:
    return f"{block.page}-{block.number}"


# -- every block


def test_every_block_of_the_documents_is_run_by_a_test_or_marked_as_no_example():
    claimed = CLAIMED.union(*(test.CLAIMED for test in (test_docs, test_readme, test_redis_ways, test_sdk_docs)))
    there = {block.claim: block for page in PAGES for block in blocks(page)}

    left = [claim for claim, block in there.items() if block.kind != "text" and claim not in claimed]

    assert left == [], "say by ```text that it is no example, or let a test run it and name it in its CLAIMED"
    assert claimed <= there.keys()
    assert [claim for claim in claimed if there[claim].kind == "text"] == []


def test_what_is_marked_as_no_example_holds_no_command():
    marked = [block for page in PAGES for block in blocks(page) if block.kind == "text"]

    assert marked
    assert [
        name_of(b) for b in marked if re.search(r"^\W*(curl|clinvk|make|docker|kubectl|pip) ", b.text, re.MULTILINE)
    ] == ["docs/architecture.md-1"], "its drawing begins with the worker's command"


# -- starting it


@pytest.mark.parametrize("block", MAKE, ids=name_of)
def test_a_make_command_is_one_that_make_knows(block):
    for words in commands(block):
        done = subprocess.run([words[0], "-n", *words[1:]], cwd=ROOT, capture_output=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr.decode()


@pytest.mark.processes
def test_make_serve_serves(tmp_path):
    (words,) = commands(MAKE[-1])
    port, marker = free_port(), f"CLINVK_TEST_MARK={tmp_path.name}-{free_port()}"
    env = {**BASE_ENV, "HOME": str(tmp_path), "CLINVK_SERVER__PORT": str(port)}
    env |= dict([marker.split("=")])
    with (tmp_path / "log").open("wb") as log:
        make = subprocess.Popen(words, cwd=ROOT, env=env, stdout=log, stderr=log, start_new_session=True)
    try:
        until(lambda: "is ready" in (tmp_path / "log").read_text() or make.poll() is not None, 60)
        assert prompt(f"http://127.0.0.1:{port}", "hello")["output"] == "hello"
    finally:
        os.killpg(make.pid, signal.SIGINT)  # as Ctrl-C does
        make.wait(20)
        until(lambda: not living(marker), 10)


@pytest.mark.processes
@pytest.mark.parametrize("block", SEVERAL, ids=name_of)
def test_the_commands_for_several_machines_make_one_service(block):
    service = Service()
    port = free_port()
    (_, setting), *starts = commands(block)
    name, _, printed = setting.partition("=")
    assert printed == "redis://redis.internal:6379/0"
    env = service.env(**{name: service.redis.url, "CLINVK_SERVER__PORT": str(port)})
    try:
        for number, words in enumerate(starts):
            assert words[0] == "clinvk"
            words = [word.replace("0.0.0.0", "127.0.0.1") for word in words]
            service.workers.append(Proc(words[1:], env, service.folder / f"{number}.log"))
        base = f"http://127.0.0.1:{port}"

        def answers() -> bool:
            assert all(proc.alive for proc in service.workers), service.logs()
            try:
                return httpx.get(base + "/readyz").json()["status"] == "ready"
            except httpx.HTTPError:
                return False

        until(answers, 30)
        assert prompt(base, "hello")["output"] == "hello"
    finally:
        service.close()


# -- configuration and keys


def test_the_configuration_of_its_page_is_taken_as_it_is_printed(tmp_path):
    (tmp_path / "config.yaml").write_text(CONFIGURATION.text)

    loaded = load(tmp_path / "config.yaml", {"HOME": str(tmp_path)})

    assert list(loaded.warnings) == []
    config = loaded.config
    assert config.redis.url == "rediss://clinvk:PASSWORD@redis.internal:6379/0"
    assert (config.worker.concurrency, config.worker.labels) == (16, {"zone": "a", "gpu": "no"})
    assert config.server.allowed_workdir_prefixes == ["/srv/repositories"]
    claude = config.backend("claude")
    assert (claude.model, claude.max_sandbox_mode, claude.env_passthrough) == ("sonnet", "workspace", ["ANTHROPIC_*"])
    assert config.backend("gemini").enabled is False


def test_the_keys_of_their_page_mean_the_same_in_yaml_and_in_a_file(tmp_path):
    (tmp_path / "config.yaml").write_text(KEYS_IN_YAML.text)
    (tmp_path / "keys").write_text(KEYS_IN_LINES.text)

    plain, team, operators = read_keys(load(tmp_path / "config.yaml", {"HOME": str(tmp_path)}).config, {})
    line, line_of_operators = read_keys(Config(server=Server(api_keys_file=str(tmp_path / "keys"))), {})

    assert plain == ApiKey(key="a-plain-key")
    assert (team.name, team.rate_limit_rps, team.rate_limit_burst, team.max_concurrent_runs) == ("team-a", 5, 10, 4)
    assert (team.allowed_backends, team.allowed_workdir_prefixes) == (["claude", "codex"], ["/srv/team-a"])
    assert team.allow_extra_flags is False
    assert line == ApiKey(
        key=team.key,
        name="team-a",
        rate_limit_rps=5,
        allowed_backends=["claude", "codex"],
        allowed_workdir_prefixes=["/srv/team-a"],
    )
    assert operators == line_of_operators == ApiKey(key="another", name="operators", role="admin")


@pytest.mark.processes
def test_the_commands_for_new_keys_make_keys_that_open(tmp_path):
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    shown = NEW_KEYS.text + 'echo "$CALLER_KEY $OPERATOR_KEY"'
    said = subprocess.run(
        ["sh", "-euc", shown], cwd=tmp_path, env=BASE_ENV, capture_output=True, text=True, timeout=30, check=True
    ).stdout
    caller, operator = said.split()
    assert caller not in (tmp_path / "keys" / "api.keys").read_text()

    with serving(workers=0, CLINVK_SERVER__API_KEYS_FILE=str(tmp_path / "keys" / "api.keys")) as service:
        base = service.apis[0][1]
        asked = [httpx.get(base + "/api/v1/workers", headers={"x-api-key": key}) for key in (caller, operator, "none")]

    assert [answer.status_code for answer in asked] == [403, 200, 401]


# -- what is run by operators, as far as it can be looked at here


@pytest.mark.parametrize("block", OPERATORS, ids=name_of)
def test_an_operators_commands_name_what_is_there(block):
    for words in commands(block):
        assert words[0].rpartition("/")[2] in {"python3", "pip", "install", "cp", "systemctl", "docker", "kubectl"}
        for word in words:
            if word.startswith("deploy/"):
                assert (ROOT / word).exists(), word
        if words[0] == "kubectl":
            assert (ROOT / words[words.index("-k") + 1] / "kustomization.yaml").exists()
        if words[0] == "systemctl":
            assert (ROOT / "deploy" / "systemd" / f"{words[-1]}.service").exists()
        if words[0] == "docker":
            assert any(
                "build" in one for one in yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"].values()
            )


@pytest.mark.processes
def test_the_settings_for_spans_bring_them_to_the_collector(tmp_path):
    script = 'pip() { echo "$@" >pip; }\n' + SPANS.text + "env -0 >environment"
    subprocess.run(["bash", "-euc", script], cwd=tmp_path, env=BASE_ENV, timeout=30, check=True)
    (extra,) = re.findall(r"clinvk\[(\w+)\]", (tmp_path / "pip").read_text())
    assert re.search(rf"^{extra} = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    pairs = [pair.partition("=") for pair in (tmp_path / "environment").read_text().split("\0")]
    given = {name: value for name, _, value in pairs if name.startswith("OTEL_")}
    assert given["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://collector:4318"

    collector = Collector()
    given |= {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "100"}
    try:
        with serving(**given) as service:
            httpx.post(
                service.apis[0][1] + "/api/v1/prompt",
                json={"backend": "echo", "prompt": "hello"},
                headers={"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"},
            )
            until(lambda: collector.named("POST /api/v1/prompt") and collector.named("run echo"))
    finally:
        collector.close()
