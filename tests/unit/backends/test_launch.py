"""Command lines and environments from a spec; nothing a caller says widens what it may do."""

import itertools
import json

import pytest

from shared.errors import InvalidRequest, NotEnforceable, UnsupportedParameter
from shared.run import RunSpec
from worker.backends import BACKENDS
from worker.backends.base import Place, Settings

PLACE = Place(cwd="/w", scratch="/s", home="/h", own_home="/o", add_dirs=("/d",))
APPROVALS = (None, "default", "auto", "none", "always")
SANDBOXES = (None, "read-only", "workspace", "full")


def launch(backend: str, settings: Settings | None = None, **fields):
    spec = RunSpec(**{"id": "r", "tenant": "t", "backend": backend, "prompt": "SECRETPROMPT", **fields})
    made = settings or Settings(command=(f"/bin/{backend}",))
    return BACKENDS[backend].launch(spec, made, PLACE, {"PATH": "/bin", "HOME": "/h"})


@pytest.mark.parametrize("backend", BACKENDS)
def test_neither_prompt_nor_system_prompt_is_ever_in_argv(backend):
    fields = {} if backend == "echo" else {"system_prompt": "SECRETSYSTEM"}

    made = launch(backend, **fields)

    assert "SECRET" not in " ".join(made.argv)
    assert "SECRET" not in " ".join(made.env.values())
    assert b"SECRETPROMPT" in made.stdin


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("prompt", ["--help", "@/etc/passwd", "/status", "x" * 1_000_000, "é 漢 🪐 \ud800", "resume"])
def test_any_prompt_is_only_data(backend, prompt):
    argv = launch(backend, prompt=prompt).argv

    assert argv == launch(backend, prompt="p").argv


@pytest.mark.parametrize("backend", ["claude", "codex", "gemini"])
def test_a_blank_prompt_is_refused(backend):
    with pytest.raises(InvalidRequest):
        launch(backend, prompt=" \n")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("approval", "sandbox"), list(itertools.product(APPROVALS, SANDBOXES)))
def test_what_a_backend_says_it_holds_is_what_it_takes(backend, approval, sandbox):
    able = BACKENDS[backend].capabilities(as_root=False)
    held = sandbox is None or sandbox in able.modes
    held = held and (approval is None or approval in able.modes[sandbox or ""])

    try:
        launch(backend, approval_mode=approval, sandbox_mode=sandbox)
        taken = True
    except NotEnforceable:
        taken = False

    assert taken is held


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "flag",
    [
        "--permission-mode=bypassPermissions",
        "--dangerously-skip-permissions",
        "--add-dir=/etc",
        "--yolo",
        "--sandbox=danger-full-access",
        "--resume=x",
        "-c",
        "--config=x",
        "--output-format=text",
        "--",
        "/etc",
        "--mcp-config=/x",
    ],
)
def test_a_callers_flag_outside_the_list_is_refused_by_name(backend, flag):
    with pytest.raises(UnsupportedParameter) as error:
        launch(backend, extra=("--effort=high", flag) if backend == "claude" else (flag,))

    assert flag in error.value.message


def test_an_operator_may_allow_more_flags():
    settings = Settings(command=("/bin/codex",), allow_extra=("--oss",))

    assert "--oss" in launch("codex", settings, extra=("--oss",)).argv


def test_claude_as_root_says_what_to_do_instead_of_failing_later():
    with pytest.raises(NotEnforceable, match="IS_SANDBOX"):
        launch("claude", Settings(command=("c",), as_root=True), approval_mode="none")

    launch("claude", Settings(command=("c",), as_root=True, env={"IS_SANDBOX": "1"}), approval_mode="none")


def test_claude_takes_its_prompt_as_text_that_is_never_a_command():
    message = json.loads(launch("claude", prompt="/clear").stdin.splitlines()[1])

    assert message["client_composed"] is True


def test_codex_never_asks_and_holds_the_sandbox():
    argv = " ".join(launch("codex", sandbox_mode="read-only", approval_mode="none").argv)

    assert 'sandbox_mode="read-only"' in argv
    assert 'approval_policy="never"' in argv
    assert 'shell_environment_policy.inherit="core"' in argv


def test_gemini_lives_in_a_home_of_its_own():
    made = launch("gemini", Settings(command=("g",), env={"GEMINI_API_KEY": "k"}))

    assert made.env["HOME"] == "/o"
    assert json.loads(made.files["/o/.gemini/settings.json"])["security"]["auth"]["selectedType"] == "gemini-api-key"
    assert made.stdout == "file"


@pytest.mark.parametrize("backend", ["claude", "codex", "gemini"])
def test_a_backends_own_name_is_never_passed_as_a_model(backend):
    assert backend not in launch(backend, Settings(command=("x",)), model=backend).argv


def test_a_model_may_not_be_a_flag():
    with pytest.raises(InvalidRequest):
        launch("claude", model="--dangerously-skip-permissions")


def test_what_a_cli_lacks_is_said():
    asked = {"max_turns": 3, "max_tokens": 9, "effort": "low", "thinking_tokens": 0}

    assert launch("codex", **asked).not_enforced == ("max_turns", "max_tokens", "thinking")
    assert launch("gemini", **asked).not_enforced == ("max_tokens", "effort", "thinking")
    assert launch("claude", **asked).not_enforced == ()
    assert launch("echo", **asked).not_enforced == ("max_turns", "max_tokens", "effort", "thinking")
    assert launch("gemini").not_enforced == ()
