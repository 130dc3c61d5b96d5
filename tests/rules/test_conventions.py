"""Conventions that a linter cannot hold."""

import ast
import io
import os
import re
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest
import yaml

from shared.config_keys import keys
from shared.config_sources import load
from shared.errors import ConfigError
from tests.rules import reference

ROOT = Path(__file__).parents[2]
MODULES = sorted(p for side in ("api", "worker", "shared") for p in (ROOT / side).rglob("*.py"))
TRACKED = [
    ROOT / name
    for name in subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    if name
]

# Who may read the environment beside the `cli.py` modules.
READS_ENVIRONMENT = {
    "worker/main.py": "the entry of the worker process, started by `clinvk worker`",
    "worker/warden.py": "the entry of the warden, a process of its own",
    "worker/process.py": "hands the warden's mark on to a run's child",
}
# Who may print beside the `cli.py` modules and programs of their own.
PRINTS = {"worker/warden.py": "has no logs: it outlives the process that has them"}


def name_of(path):
    return str(path.relative_to(ROOT))


def ids(path):
    return name_of(path)


@pytest.mark.parametrize("path", MODULES, ids=ids)
def test_a_module_says_its_one_job_and_is_not_too_long(path):
    text = path.read_text()

    assert ast.get_docstring(ast.parse(text)), "the first line of a module says its job"
    assert text.startswith('"""'), "it stands on the first line"
    assert len(text.splitlines()) <= 400


def uses(path, what):
    """The lines where a dotted name such as `os.environ` is used."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute | ast.Name) and ast.unparse(node) in what
    ]


def test_the_environment_is_read_by_the_entry_points_alone():
    readers = {name_of(p) for p in MODULES if p.name != "cli.py" and uses(p, {"os.environ", "os.getenv", "getenv"})}

    assert readers <= READS_ENVIRONMENT.keys()


def test_only_commands_print():
    printers = {name_of(p) for p in MODULES if not p.name.endswith("cli.py") and uses(p, {"print", "pprint"})}

    assert printers <= PRINTS.keys()


def test_every_exception_from_a_rule_names_its_code_and_its_reason():
    form = re.compile(r"# (noqa: [A-Z]+\d+(, ?[A-Z]+\d+)*|type: ignore\[[\w, -]+\])  # \w+")

    bare = [
        f"{name_of(path)}:{token.start[0]}"
        for path in TRACKED
        if path.suffix == ".py" and path.is_file()
        for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline)
        if token.type == tokenize.COMMENT and re.match(r"#\s*(noqa|type:\s*ignore)", token.string)
        if not form.match(token.string)
    ]

    assert bare == []


def test_the_configuration_reference_agrees_with_the_code():
    page = reference.PATH.read_text()

    assert page == reference.render(page), "run: make fix"


@pytest.mark.parametrize("key", keys(), ids=lambda key: key.path)
def test_a_key_is_read_by_whom_it_names_or_said_to_be_not_in_force(key):
    section, _, name = key.path.rpartition(".")
    sides = {"api": ("api",), "worker": ("worker",), "both": ("api", "worker")}[key.by]
    # A backend's section is at hand under many names; any other is read as `config.section.key`.
    found = (
        rf"\.{name}\b" if section == "backends.NAME" else rf"\b(config|{section.rpartition('.')[2]}|flags)\.{name}\b"
    )
    refused = {"server.rate_limit_enabled"}
    by_all = {"server.api_keys", "server.api_keys_gopass_path"}  # read by shared.key_sources for the API

    for side in sides:
        read = any(re.search(found, p.read_text()) for p in MODULES if name_of(p).startswith(side + "/"))
        if key.path not in refused | by_all:
            assert read is not key.pending, f"{key.path} in {side}/: pending={key.pending}, read={read}"


FORBIDDEN = (
    "py" + "pi.org",
    "python" + "hosted.org",
    "npm" + "js.org",
    "npm" + "js.com",
    "/work" + "/",
    "/opt/" + "wheels",
)


def test_no_tracked_text_names_a_registry_or_a_path_of_some_machine():
    # What was recorded from the CLIs says where they ran.
    texts = {p: p.read_text(errors="ignore") for p in TRACKED if p.is_file() and "transcripts" not in p.parts}

    assert [(name_of(path), word) for path, text in texts.items() for word in FORBIDDEN if word in text] == []


def test_every_variable_that_a_text_names_exists():
    texts = [p for p in TRACKED if p.suffix in {".md", ".yml", ".yaml", ""} and p.is_file()]
    named = {(name_of(p), name) for p in texts for name in re.findall(r"\bCLINVK_[A-Z0-9_]*[A-Z0-9]\b", p.read_text())}

    def known(name):
        try:
            load(None, {"HOME": "/nonexistent", name.replace("__NAME__", "__ECHO__"): "1"})
        except ConfigError as error:
            return "unknown variable" not in error.message
        return True

    assert named
    assert [(path, name) for path, name in sorted(named) if not known(name)] == []


def test_the_files_that_start_the_service_name_its_commands():
    procfile = (ROOT / "Procfile").read_text()
    units = [path.read_text() for path in (ROOT / "deploy" / "systemd").glob("*.service")]
    images = (ROOT / "deploy" / "Dockerfile").read_text()

    commands = re.findall(r"^\w+: \.venv/bin/clinvk (\w+)", procfile, re.MULTILINE)
    commands += [re.search(r"^ExecStart=\S+/clinvk (\w+)", unit, re.MULTILINE)[1] for unit in units]
    commands += re.findall(r'^CMD \["clinvk", "(\w+)"', images, re.MULTILINE)
    assert sorted(commands) == ["serve"] * 3 + ["worker"] * 3
    assert yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["repo"] == "local"


def test_make_help_lists_every_target():
    text = subprocess.run(["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)

    assert phony is not None
    assert {line.split()[0] for line in text.splitlines()} == set(phony[1].split())
    assert {"help", "install", "serve", "test", "check", "fix", "bench", "clis"} <= set(phony[1].split())


@pytest.mark.parametrize(("target", "minutes"), [("fuzz", 5), ("soak", 30)])
def test_minutes_are_those_that_make_help_names_unless_told(target, minutes):
    def command(*words):
        words = ["make", "-ns", target, *words]
        env = {"PATH": os.environ["PATH"]}
        out = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, check=True).stdout
        return out.splitlines()[-1].split()[-1]

    assert command() == str(minutes)
    assert command("MINUTES=7") == "7"
    (line,) = re.findall(rf"^{target}:.*##(.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert re.search(rf"MINUTES\W+{minutes}\b", line)


@pytest.mark.parametrize(("command", "foreign"), [("serve", ("celery", "worker")), ("worker", ("litestar", "api"))])
def test_one_side_never_imports_the_other(command, foreign):
    code = (
        "import sys; from shared.cli import main\n"
        f"assert main([{command!r}, '--help']) == 0\n"
        f"assert not set(sys.modules) & {set(foreign)!r}, set(sys.modules) & {set(foreign)!r}"
    )

    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)
