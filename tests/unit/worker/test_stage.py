"""A host's defaults, its ceilings, and what a session keeps of it."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shared.config import BackendConfig, Config, UnifiedFlags
from shared.errors import BackendUnavailable, NotEnforceable
from shared.run import RunSpec
from worker.stage import Prepared, Stage

APPROVALS = ("always", "default", "auto", "none")
SANDBOXES = ("read-only", "workspace", "full")
Prepare = Callable[..., Prepared]


@pytest.fixture
def prepare(tmp_path: Path) -> Prepare:
    user = tmp_path / "user"
    (user / ".gemini").mkdir(parents=True)
    (user / ".gemini" / "oauth_creds.json").write_text("LOGIN")

    def prepare(backend: str, config: dict[str, Any], flags: dict[str, Any] | None = None, **asked: Any) -> Prepared:
        made = BackendConfig(command="/bin/true", **config)
        whole = Config(backends={backend: made}, unified_flags=UnifiedFlags(**(flags or {})))
        stage = Stage(whole, tmp_path / "clinvk", {"HOME": str(user), "PATH": "/bin"})
        fields = {"id": "run_1", "tenant": "t", "backend": backend, "prompt": "p", **asked}
        return stage.prepare(RunSpec(**fields))

    return prepare


def sandbox_of(prepared: Prepared) -> str | None:
    """What codex is told."""
    words = [word for word in prepared.launch.argv if word.startswith("sandbox_mode=")]
    return json.loads(words[0].partition("=")[2]) if words else None


def test_a_sandbox_that_nobody_asked_for_is_held_under_the_ceiling(prepare: Prepare):
    assert sandbox_of(prepare("codex", {"max_sandbox_mode": "read-only"})) == "read-only"
    assert sandbox_of(prepare("codex", {"max_sandbox_mode": "workspace"})) == "workspace-write"
    assert sandbox_of(prepare("codex", {"max_sandbox_mode": "full"})) is None
    assert sandbox_of(prepare("codex", {})) is None


@pytest.mark.parametrize("approval", [None, *APPROVALS])
def test_no_approval_mode_widens_a_sandbox_under_its_ceiling(prepare: Prepare, approval):
    found = prepare("codex", {"max_sandbox_mode": "read-only"}, approval_mode=approval)

    assert sandbox_of(found) == "read-only"


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize(("default", "ceiling"), list(itertools.product(SANDBOXES, SANDBOXES)))
def test_a_hosts_own_default_above_its_ceiling_is_lowered_to_it(prepare: Prepare, own, default, ceiling):
    mode = {"sandbox_mode": default}
    config = {"max_sandbox_mode": ceiling} | (mode if own else {})

    found = prepare("codex", config, {} if own else mode)

    held = SANDBOXES[min(SANDBOXES.index(default), SANDBOXES.index(ceiling))]
    told = {"read-only": "read-only", "workspace": "workspace-write", "full": "danger-full-access"}
    assert sandbox_of(found) == told[held]


@pytest.mark.parametrize(("default", "ceiling"), list(itertools.product((None, *APPROVALS), APPROVALS)))
def test_an_approval_mode_that_nobody_asked_for_is_held_under_the_ceiling(prepare: Prepare, default, ceiling):
    argv = prepare("claude", {"max_approval_mode": ceiling, "approval_mode": default, "env": {"IS_SANDBOX": "1"}})

    held = APPROVALS[min(APPROVALS.index(default or "default"), APPROVALS.index(ceiling))]
    told = {"always": "dontAsk", "default": "default", "auto": "acceptEdits", "none": "bypassPermissions"}
    words = argv.launch.argv
    assert words[words.index("--permission-mode") + 1] == told[held]


def test_what_is_asked_for_above_a_ceiling_is_refused_by_name(prepare: Prepare):
    with pytest.raises(NotEnforceable) as error:
        prepare("codex", {"max_sandbox_mode": "workspace"}, sandbox_mode="full")
    assert error.value.field == "sandbox_mode"
    with pytest.raises(NotEnforceable) as error:
        prepare("codex", {"max_approval_mode": "always"}, approval_mode="default")
    assert error.value.field == "approval_mode"


# -- a session's HOME


def login_of(prepared: Prepared) -> Path:
    return Path(prepared.launch.env["HOME"]) / ".gemini" / "oauth_creds.json"


def test_a_sessions_home_keeps_no_login_after_the_run(prepare: Prepare):
    found = prepare("gemini", {}, session_id="ses_1")
    assert login_of(found).read_text() == "LOGIN"

    found.clean()

    assert not login_of(found).exists()
    assert login_of(found).parent.is_dir()
    assert login_of(prepare("gemini", {}, session_id="ses_1")).read_text() == "LOGIN"


def test_a_link_in_the_place_of_a_sessions_folder_does_not_lead_to_the_operators_own(prepare: Prepare, tmp_path: Path):
    found = prepare("gemini", {}, session_id="ses_1")
    own = tmp_path / "user" / ".gemini"
    folder = login_of(found).parent
    folder.rename(folder.parent / "aside")
    folder.symlink_to(own)

    found.clean()

    assert (own / "oauth_creds.json").read_text() == "LOGIN"
    with pytest.raises(BackendUnavailable):
        prepare("gemini", {}, session_id="ses_1")
    assert sorted(path.name for path in own.iterdir()) == ["oauth_creds.json"]


def test_a_link_in_the_place_of_a_login_is_removed_and_what_it_leads_to_stays(prepare: Prepare, tmp_path: Path):
    found = prepare("gemini", {}, session_id="ses_1")
    login_of(found).unlink()
    login_of(found).symlink_to(tmp_path / "user" / ".gemini" / "oauth_creds.json")

    found.clean()

    assert not login_of(found).is_symlink()
    assert (tmp_path / "user" / ".gemini" / "oauth_creds.json").exists()


@pytest.mark.parametrize("empty", [{}, {"GEMINI_API_KEY": "", "GOOGLE_API_KEY": "", "GOOGLE_GENAI_USE_VERTEXAI": ""}])
def test_a_vendors_variable_that_is_set_to_nothing_hides_no_login(tmp_path: Path, empty):
    environ = {"HOME": str(tmp_path), "PATH": "/bin", "NO_PROXY": "", "KEPT": "", **empty}
    config = Config(backends={"gemini": BackendConfig(command="/bin/true", env_passthrough=["KEPT"])})

    found = Stage(config, tmp_path / "clinvk", environ).prepare(
        RunSpec(id="run_1", tenant="t", backend="gemini", prompt="p")
    )

    (settings,) = (content for path, content in found.launch.files.items() if path.endswith("/settings.json"))
    assert json.loads(settings)["security"]["auth"]["selectedType"] == "oauth-personal"
    assert not empty.keys() & found.launch.env.keys()
    assert {"NO_PROXY", "KEPT"} <= found.launch.env.keys(), "what is no login is handed on as it is"


def test_a_hosts_own_setting_that_is_empty_is_no_key_either(prepare: Prepare):
    found = prepare("gemini", {"env": {"GEMINI_API_KEY": ""}})

    (settings,) = (content for path, content in found.launch.files.items() if path.endswith("/settings.json"))
    assert json.loads(settings)["security"]["auth"]["selectedType"] == "oauth-personal"
