"""docs/security.md, of what a work directory configures for the real CLIs."""

import json
from pathlib import Path

import pytest

from tests.system import clis
from tests.system.service import Service, prompt

pytestmark = [pytest.mark.clis, pytest.mark.processes]

NONE_OF_IT = ["--setting-sources=user", "--strict-mcp-config"]


def configured(workdir: Path, marks: Path) -> None:
    def touching(name: str) -> str:
        return f"touch {marks}/{name}"

    (workdir / ".claude").mkdir(parents=True)
    (workdir / "CLAUDE.md").write_text("WORDS-OF-THE-DIRECTORY")
    hook = {"hooks": [{"type": "command", "command": touching("hook")}]}
    settings = {"hooks": {"SessionStart": [hook]}, "apiKeyHelper": f"{touching('helper')}; echo key"}
    (workdir / ".claude/settings.json").write_text(json.dumps(settings))
    server = {"command": "/bin/sh", "args": ["-c", f"{touching('mcp')}; exit 1"]}
    (workdir / ".mcp.json").write_text(json.dumps({"mcpServers": {"its": server}}))


def read_in(service: Service, backend: str, workdir: Path) -> None:
    fields = {"backend": backend, "workdir": str(workdir), "sandbox_mode": "read-only", "ephemeral": True}
    answer = prompt(service.apis[0][1], "[[mock:text]] hi", **fields)
    assert answer["exit_code"] == 0, answer


@pytest.mark.parametrize("flags", [[], NONE_OF_IT], ids=["as it is", "by the flags that are advised"])
def test_what_claude_starts_of_a_directory_though_it_may_only_read(tmp_path, flags):
    assert json.dumps(flags) in (Path(__file__).parents[2] / "docs/security.md").read_text() or not flags
    config = {"CLINVK_BACKENDS__CLAUDE__EXTRA_FLAGS": json.dumps(flags)}
    with clis.serving_clis("cold", ["claude"], **config) as (service, mock):
        workdir = service.folder / "checkout"
        configured(workdir, tmp_path)
        before = len(mock.requests)

        read_in(service, "claude", workdir)

    told = any("WORDS-OF-THE-DIRECTORY" in json.dumps(request.body) for request in mock.requests[before:])
    assert told == (not flags)
    started = {path.name for path in tmp_path.iterdir()}
    assert (
        started == set() if flags else {"helper", "hook"} <= started
    )  # the server may come too late for so short a run


def test_gemini_starts_a_directorys_hooks_though_it_may_only_read(tmp_path):
    with clis.serving_clis("cold", ["gemini"]) as (service, _):
        workdir = service.folder / "checkout"
        (workdir / ".gemini").mkdir(parents=True)
        hook = {"hooks": [{"type": "command", "command": f"touch {tmp_path}/hook"}]}
        (workdir / ".gemini/settings.json").write_text(json.dumps({"hooks": {"SessionStart": [hook]}}))

        read_in(service, "gemini", workdir)

    assert (tmp_path / "hook").exists()
