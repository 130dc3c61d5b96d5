"""The configuration: sources, order, and errors that say what would be right."""

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from shared.config import BACKEND_NAMES, ApiKey
from shared.config_keys import IGNORED, all_keys
from shared.config_section import masked
from shared.config_sources import VARIABLES, load, variable_of
from shared.errors import ConfigError
from shared.key_sources import read_keys

HOME = {"HOME": "/nonexistent"}

# As clinvoker writes it: every key, "not set" as an empty text or a zero.
CLINVOKERS = """
default_backend: claude
unified_flags:
  {approval_mode: default, sandbox_mode: default, verbose: false, dry_run: false, max_turns: 0, max_tokens: 0,
   command_timeout_secs: 0, output_format: json}
backends:
  claude: {model: opus, allowed_tools: all, approval_mode: "", sandbox_mode: "", enabled: true, system_prompt: "",
    extra_flags: []}
  codex: {model: o3, enabled: true, extra_flags: []}
  gemini: {model: gemini-2.5-pro, enabled: true, extra_flags: []}
session: {auto_resume: true, retention_days: 30, store_token_usage: true, default_tags: []}
output: {format: json, show_tokens: false, show_timing: false, color: true}
parallel: {max_workers: 3, fail_fast: false, aggregate_output: true}
server:
  {host: "127.0.0.1", port: 8080, request_timeout_secs: 300, read_timeout_secs: 30, write_timeout_secs: 300,
   idle_timeout_secs: 120, api_keys_gopass_path: "", rate_limit_enabled: false, rate_limit_rps: 10,
   rate_limit_burst: 20, rate_limit_cleanup_secs: 180, trusted_proxies: [], max_request_body_bytes: 10485760,
   cors_allowed_origins: [], cors_allow_credentials: false, cors_max_age: 300, allowed_workdir_prefixes: [],
   blocked_workdir_prefixes: [], metrics_enabled: false}
"""


def with_file(tmp_path, text, **environ):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return load(path, HOME | environ)


def refused(tmp_path, text, **environ):
    with pytest.raises(ConfigError) as error:
        with_file(tmp_path, text, **environ)
    return error.value.message


def test_flags_go_over_environment_over_file_over_defaults(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("server: {port: 1, host: a}\nworker: {concurrency: 2}\n")

    config = load(path, HOME | {"CLINVK_SERVER__PORT": "3", "CLINVK_SERVER__HOST": "b"}, {"server.host": "c"}).config

    assert (config.server.port, config.server.host, config.worker.concurrency) == (3, "c", 2)
    assert config.server.request_timeout_secs == 300


def test_a_flag_that_was_not_given_leaves_what_was_there(tmp_path):
    assert load(None, HOME | {"CLINVK_SERVER__PORT": "3"}, {"server.port": None}).config.server.port == 3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("server: {prot: 1}", "'server.port'"),
        ("servr: {}", "'server'"),
        ("backends: {claude: {modle: x}}", "'backends.claude.model'"),
        ("backends: {cluade: {}}", "'backends.claude'"),
        ("max_depth: 3", "'queue.max_depth'"),
        ("server: {port: 99999}", "server.port is 99999; it must be a whole number from 0 to 65535"),
        ("server: {port: [1]}", "server.port is a list"),
        ("server: [1]", "server is a section"),
        ("worker: {lease_secs: .nan}", "a number from 4 to 3600"),
        ("runs: {retention_secs: .inf}", "runs.retention_secs is inf"),
        ("worker: {labels: {gpu: yes}}", "in quotes"),
        ("worker: {name: 'a b'}", "letters, digits"),
        ("unified_flags: {approval_mode: yolo}", "one of always, auto, default, none"),
        ("default_backend: gpt", "one of claude, codex"),
        ("server: {host: ''}", "server.host"),
        ("server: {blocked_workdir_prefixes: [srv]}", "must begin with / or ~/"),
        ("redis: {url: 'http://h'}", "must begin with redis://"),
        ("backends: {claude: {command: []}}", "backends.claude.command"),
        ("parallel: {max_workers: 60}", "above max_window"),
        ("parallel: {max_workers: 3, max_window: 2}", "above max_window (2)"),
        ("queue: {max_depth: 10, max_depth_per_tenant: 11}", "above max_depth (10)"),
        ("server: {api_keys: abc}", "a list of keys"),
        ("server: {api_keys: []}", "holds no key"),
        ("server:\n  port: 1\n  port: 2", "line 3"),
        ("server:\n\n  prot: 1", "line 3"),
        ("yes: 1", "put it in quotes"),
        ("- 1", "a list"),
        ("a: [", "YAML"),
        ("a: !!python/object:os.system x", "YAML"),
        ("a: !!int x", "YAML"),
        ("a: 2001-99-99", "YAML"),
        ("x: &x [*x]", "unknown key 'x'"),
        ("{" * 3000, "YAML"),
        ("#" * (1 << 20) + "\n", "larger than"),
    ],
)
def test_a_wrong_file_is_told_what_is_wrong_and_where(tmp_path, text, said):
    message = refused(tmp_path, text)

    assert said in message
    assert "config.yaml" in message
    assert "\n" not in message


@pytest.mark.parametrize("word", ["off", "Off", "'off'", "false"])
def test_an_off_without_quotes_is_off(tmp_path, word):
    """YAML takes it for false."""
    loaded = with_file(tmp_path, f"backends:\n  codex:\n    warm:\n      mode: {word}\n")
    assert loaded.config.backend("codex").warm.mode == "off"


@pytest.mark.parametrize("word", ["on", "true", "no thanks"])
def test_what_is_neither_auto_nor_off_is_refused(tmp_path, word):
    text = f"backends: {{codex: {{warm: {{mode: {word}}}}}}}"
    assert "it must be one of auto, off" in refused(tmp_path, text)


def test_parts_of_a_file_may_be_written_once(tmp_path):
    text = (
        "backends:\n  claude: &all {env_passthrough: [A], max_concurrency: 2}\n  codex: {<<: *all, max_concurrency: 3}"
    )

    codex = with_file(tmp_path, text).config.backend("codex")

    assert (codex.env_passthrough, codex.max_concurrency) == (["A"], 3)


@given(st.text(alphabet="ab:{}[]&*!-? \n'\"%@`|>~<#,0123456789.", max_size=60))
def test_whatever_stands_in_a_file_is_read_or_refused_in_one_line(tmp_path_factory, text):
    message = ""
    try:
        with_file(tmp_path_factory.mktemp("c"), text)
    except ConfigError as error:
        message = error.message

    assert "\n" not in message


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("CLINVK_SERVER__PROT", "CLINVK_SERVER__PORT"),
        ("CLINVK_CODEX_MODELL", "CLINVK_CODEX_MODEL"),
        ("CLINVK_BACKENDS__CLAUD__MODEL", "CLINVK_BACKENDS__CLAUDE__MODEL"),
        ("CLINVK_server__port", "unknown"),
    ],
)
def test_an_unknown_variable_is_refused_with_the_nearest(name, said):
    with pytest.raises(ConfigError, match=said):
        load(None, HOME | {name: "1"})


@pytest.mark.parametrize("path", list(all_keys()))
def test_every_key_has_a_variable(path):
    with pytest.raises(ConfigError, match=variable_of(path)):
        load(None, HOME | {variable_of(path): " "})


def test_variables_that_processes_tell_each_other_are_passed_over():
    names = ("CLINVK_LIFELINE", "CLINVK_RUN", "CLINVK_INSTANCE", "CLINVK_WARDEN", "CLINVK_REQUIRE", "CLINVK_TEST_MARK")

    load(None, HOME | dict.fromkeys(names, ""))


def test_lists_and_mappings_are_read_from_variables():
    environ = {
        "CLINVK_SERVER__ALLOWED_WORKDIR_PREFIXES": "/srv, ~/code",
        "CLINVK_WORKER__LABELS": "zone=a,gpu=no",
        "CLINVK_BACKENDS__CODEX__COMMAND": "[npx, codex]",
        "CLINVK_BACKENDS__CODEX__SYSTEM_PROMPT": "[be brief]",
        "CLINVK_CODEX_MODEL": "o3",
    }

    config = load(None, HOME | environ).config

    assert config.server.allowed_workdir_prefixes == ["/srv", "/nonexistent/code"]
    assert config.worker.labels == {"zone": "a", "gpu": "no"}
    codex = config.backend("codex")
    assert (codex.command, codex.system_prompt, codex.model) == (["npx", "codex"], "[be brief]", "o3")


def test_two_variables_for_one_key_must_agree():
    with pytest.raises(ConfigError, match="mean the same key"):
        load(None, HOME | {"CLINVK_REDIS_URL": "redis://a", "CLINVK_REDIS__URL": "redis://b"})


def test_a_file_that_was_named_must_be_there(tmp_path):
    with pytest.raises(ConfigError, match="cannot read"):
        load(tmp_path / "no.yaml", HOME)
    with pytest.raises(ConfigError, match="cannot read"):
        load(None, HOME | {"CLINVK_CONFIG": str(tmp_path / "no.yaml")})
    with pytest.raises(ConfigError, match="cannot read"):
        load(tmp_path, HOME)

    assert load(None, HOME).file is None


def test_the_home_holds_the_file(tmp_path):
    (tmp_path / "config.yaml").write_text("server: {port: 5}")

    loaded = load(None, HOME | {"CLINVK_HOME": str(tmp_path)})

    assert (loaded.home, loaded.config.server.port) == (tmp_path, 5)


@pytest.mark.parametrize(
    "environ",
    [
        {"CLINVK_API_KEYS": ""},
        {"CLINVK_API_KEYS": " , "},
        {"CLINVK_API_KEY": ""},
        {"CLINVK_API_KEYS": '[{"key": "k", "name": "n"}]'},
        {"CLINVK_SERVER__API_KEYS_FILE": "/nonexistent/keys"},
        {"CLINVK_SERVER__API_KEYS_FILE": "/dev/null"},
        {"CLINVK_SERVER__API_KEYS": "['']"},
        {"CLINVK_SERVER__API_KEYS": "['sha256:12']"},
        {"CLINVK_API_KEYS_GOPASS_PATH": "a/b"},
        {"CLINVK_SERVER__ALLOWED_WORKDIR_PREFIXES": ""},
    ],
)
def test_a_protection_that_is_asked_for_and_not_there_stops_the_start(environ):
    with pytest.raises(ConfigError):
        read_keys(load(None, HOME | environ).config, {})


def test_keys_come_from_all_sources(tmp_path):
    file = tmp_path / "keys"
    file.write_text("# people\nalpha team-a\nbeta\n")
    environ = {"CLINVK_API_KEYS": "x, y", "CLINVK_SERVER__API_KEYS_FILE": str(file)}

    keys = "server: {api_keys: [z, {key: w, name: n, role: admin}]}"
    found = read_keys(with_file(tmp_path, keys, **environ).config, {})

    assert found == [
        ApiKey(key="z"),
        ApiKey(key="w", name="n", role="admin"),
        ApiKey(key="x"),
        ApiKey(key="y"),
        ApiKey(key="alpha", name="team-a"),
        ApiKey(key="beta"),
    ]


def test_a_key_that_is_no_list_is_not_taken_for_a_list_of_letters(tmp_path):
    assert "a list of keys" in refused(tmp_path, "server: {api_keys: abc}", CLINVK_API_KEYS="x")


def test_the_ancestors_own_keys_are_taken_with_a_warning(tmp_path):
    loaded = with_file(tmp_path, "output: {color: true}\nserver: {rate_limit_cleanup_secs: 5}\nsession:\n")

    assert ["output.color" in w for w in loaded.warnings] == [True, False]
    assert "rate_limit_cleanup_secs is not yet in force" in loaded.warnings[1]


def test_clinvokers_file_is_taken_as_it_is(tmp_path):
    loaded = with_file(tmp_path, CLINVOKERS)

    flags, claude = loaded.config.unified_flags, loaded.config.backend("claude")
    assert (flags.max_turns, flags.max_tokens, flags.sandbox_mode, claude.sandbox_mode) == (None,) * 4
    assert (flags.command_timeout_secs, claude.model, claude.approval_mode) == (600, "opus", None)
    assert len(loaded.warnings) == len(IGNORED) + 1
    assert any("command_timeout_secs is 0" in warning for warning in loaded.warnings)


def test_a_backend_does_not_silently_take_the_general_sandbox_for_its_default(tmp_path):
    text = "unified_flags: {sandbox_mode: full}\nbackends: {codex: {sandbox_mode: default}}"

    assert "say which sandbox mode" in refused(tmp_path, text)


def test_what_is_not_in_force_is_said_and_only_where_it_was_changed(tmp_path):
    loaded = with_file(tmp_path, "server: {idle_timeout_secs: 120, rate_limit_cleanup_secs: 5}")

    assert [warning.partition(": ")[2] for warning in loaded.warnings] == [
        "server.rate_limit_cleanup_secs is not yet in force in this version"
    ]


def test_no_secret_is_shown(tmp_path):
    text = (
        "server: {api_keys: [SECRET, {key: SECRET}]}\nredis: {url: 'redis://u:SECRET@h:1/0?password=SECRET'}\n"
        "backends: {claude: {env: {K: SECRET}}}"
    )
    loaded = with_file(tmp_path, text)
    config = loaded.config

    for shown in (loaded, config, config.server, config.server.api_keys[1:], config.redis, config.backends):
        assert "SECRET" not in repr(shown)
    assert "SECRET" not in str(masked(config))
    assert masked(config)["redis"]["url"] == "redis://***@h:1/0?password=***"


@pytest.mark.parametrize(
    "text",
    [
        "server: {api_keys: [SECRET",
        "server: {api_keys: SECRET}",
        "server: {api_keys: [{key: SECRET, nam: x}]}",
        "server: {api_keys: ['sha256:SECRET']}",
        "backends: {claude: {env: SECRET}}",
        "redis: {url: 'http://u:SECRET@h'}",
        "redis: {url: [SECRET]}",
        "a: 'SECRET\n b: \"",
        "SECRET",
    ],
)
def test_no_error_shows_a_secret(tmp_path, text):
    message = refused(tmp_path, text)

    assert "SECRET" not in message or text == "SECRET"


def test_what_config_show_prints_is_a_configuration(tmp_path):
    shown = masked(load(None, HOME).config)
    del shown["server"]["api_keys"]

    assert with_file(tmp_path, yaml.safe_dump(shown)).config == load(None, HOME).config


def test_every_short_variable_names_a_key():
    assert set(VARIABLES) <= set(all_keys())
    assert {path.split(".")[1] for path in all_keys() if path.startswith("backends.")} == set(BACKEND_NAMES)


def test_a_small_max_window_alone_is_the_window_of_flows_that_ask_for_none(tmp_path):
    parallel = with_file(tmp_path, "parallel: {max_window: 2}").config.parallel

    assert (parallel.max_workers, parallel.max_window) == (3, 2)


@pytest.mark.parametrize(
    "name", ["CLINVK_SERVER__PORT", "CLINVK_API_KEYS", "CLINVK_REDIS_URL", "CLINVK_WORKER__LABELS"]
)
def test_a_variable_that_is_no_text_is_refused_by_its_name(name):
    with pytest.raises(ConfigError, match="UTF-8") as refused:
        load(None, {**HOME, name: "a=\udcff"})

    str(refused.value).encode()


def test_half_a_character_in_a_file_is_refused(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text('server: {api_keys: ["\\ud800"]}')

    with pytest.raises(ConfigError):
        load(file, HOME)
