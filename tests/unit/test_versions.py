"""The wire between processes of different versions: what was once written is read today, and what is new is passed over.

`tests/golden/wire/` holds bytes as releases have written them; a file there is never changed. `python -m
tests.unit.test_versions NAME` writes today's into a new folder, for a release that adds something.
"""

import json
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from shared import event, queue
from shared.flow import Flow
from shared.host import BackendState, Capabilities, Instance, Readiness
from shared.run import Attachment, Failure, Outcome, RunSpec, Turn, Usage

FOLDER = Path(__file__).parents[1] / "golden" / "wire"
RELEASES = sorted(path for path in FOLDER.iterdir() if path.is_dir())
AT_S = 1_800_000_000.125

FAILURE = Failure("backend_limited", "the vendor limits", "rate_limited", 30.0)
SPEC = RunSpec(
    id="run_1",
    tenant="team",
    backend="claude",
    prompt="hello 漢字",
    dialect="openai",
    model="opus",
    system_prompt="be brief",
    system_prompt_mode="append",
    workdir="/srv/x",
    add_dirs=("/srv/y",),
    ephemeral=True,
    session_id="ses_1",
    resume="cli-1",
    prior_usage=Usage(1, 2, 3, 4),
    approval_mode="auto",
    sandbox_mode="workspace",
    max_turns=3,
    max_tokens=100,
    extra=("--effort=low",),
    verbose=True,
    dry_run=True,
    timeout_s=60.0,
    retry=1,
    priority="batch",
    labels={"zone": "a"},
    metadata={"n": 1},
    request_id="req_1",
    output_format="json",
    history=(Turn(role="user", text="a"), Turn(role="assistant", text="b")),
    attachments=(Attachment(media_type="image/png", data="AA==", name="x", field="messages[0]"),),
    schema={"type": "object"},
    effort="low",
    thinking_tokens=0,
    flow_id="flow_1",
    lane=2,
    workspace="ses_1",
    start_within_s=5.0,
    reply={"model": "m"},
)
OUTCOME = Outcome(
    exit_code=1,
    output="so far",
    usage=Usage(1, 2, 3, 4),
    failure=FAILURE,
    backend_session_id="cli-1",
    model="opus",
    turns=2,
    duration_ms=1500,
    cost_usd=0.5,
    not_enforced=("max_turns",),
)
STATE = BackendState(
    name="claude",
    readiness=Readiness.LIMITED,
    version="2.1",
    path="/bin/claude",
    reason="limited",
    until=AT_S,
    slots=2,
    running=1,
    capabilities=Capabilities(
        modes={"": ("default",)},
        system_prompt=("replace",),
        options=("model",),
        attachments=("image/*",),
        extra=("--x",),
    ),
)
INSTANCE = Instance(
    id="ins_1",
    host="a",
    pid=7,
    version="0.1.0",
    started_at=AT_S,
    slots=8,
    running=1,
    draining=True,
    labels={"zone": "a"},
    backends=(STATE,),
)
FLOW = Flow(
    id="flow_1",
    tenant="team",
    kind="chain",
    lanes=(SPEC,),
    names=("first",),
    window=1,
    fail_fast=True,
    reply={"a": 1},
)
VALUES: dict[str, Any] = {
    "spec": SPEC,
    "outcome": OUTCOME,
    "failure": FAILURE,
    "instance": INSTANCE,
    "flow": FLOW,
}
CONTENTS: tuple[event.Content, ...] = (
    event.Init("opus", "cli-1"),
    event.Message("hello", "assistant", True),
    event.Thinking("hm", True),
    event.ToolUse("t1", "Bash", {"command": "ls"}),
    event.ToolResult("t1", "x", True),
    event.Progress("again", 4),
    event.TokenUsage(1, 2, 3, 4),
    event.Error("timeout", "too late", {"cause": "idle"}),
    event.Done(Usage(1, 2, 3, 4), 1.5, 2),
)


def encoded_events() -> list[bytes]:
    return [
        event.encode(content, backend="claude", session_id="ses_1", sequence=i, at_s=AT_S)
        for i, content in enumerate(CONTENTS, 1)
    ]


def write(folder: Path) -> None:
    folder.mkdir()
    for name, value in VALUES.items():
        (folder / f"{name}.json").write_bytes(msgspec.json.encode(value) + b"\n")
    (folder / "events.ndjson").write_bytes(b"\n".join(encoded_events()) + b"\n")
    (folder / "message.json").write_bytes(queue.message("run_1", "claude", "run_1-1") + b"\n")


def recorded(release: Path, name: str) -> bytes:
    return (release / f"{name}.json").read_bytes()


def test_something_is_recorded():
    assert RELEASES


@pytest.mark.parametrize("release", RELEASES, ids=lambda path: path.name)
@pytest.mark.parametrize("name", VALUES)
def test_what_a_release_wrote_is_read_whole_today(release, name):
    line = recorded(release, name)

    value = msgspec.json.decode(line, type=type(VALUES[name]))

    # Nothing of it is passed over: what it says is what today's own writing of it says.
    assert contained(json.loads(line), json.loads(msgspec.json.encode(value)))


@pytest.mark.parametrize("name", VALUES)
def test_what_today_writes_is_read_by_the_first_release(name):
    """It knows only the fields that it wrote itself; of those none may have gone or changed its form."""
    first = json.loads(recorded(RELEASES[0], name))

    today = json.loads(msgspec.json.encode(VALUES[name]))

    assert contained(first, today)


def contained(first: Any, second: Any) -> bool:
    """Whether all that the first says stands in the second."""
    if isinstance(first, dict) and isinstance(second, dict):
        return all(name in second and contained(value, second[name]) for name, value in first.items())
    if isinstance(first, list) and isinstance(second, list):
        return len(first) == len(second) and all(contained(a, b) for a, b in zip(first, second, strict=True))
    return bool(first == second)


# What a caller said stands there as it is; nothing of ours is in it.
FREE = ("reply", "metadata", "labels", "schema", "modes")


def with_news(value: Any) -> Any:
    """An unknown field at every place of ours."""
    if isinstance(value, dict):
        return {name: one if name in FREE else with_news(one) for name, one in value.items()} | {
            "of_a_later_version": {"x": [1]}
        }
    return [with_news(one) for one in value] if isinstance(value, list) else value


@pytest.mark.parametrize("name", VALUES)
def test_fields_of_a_later_version_are_passed_over(name):
    line = msgspec.json.encode(VALUES[name])

    found = msgspec.json.decode(json.dumps(with_news(json.loads(line))), type=type(VALUES[name]))

    assert found == msgspec.json.decode(line, type=type(VALUES[name]))


@pytest.mark.parametrize("release", RELEASES, ids=lambda path: path.name)
def test_events_of_a_release_are_read_whole_today(release):
    lines = (release / "events.ndjson").read_bytes().splitlines()

    found = [event.decode(line) for line in lines]

    assert [one.content for one in found if one is not None] == list(CONTENTS[: len(lines)])
    assert [event.is_last(line) for line in lines] == [one.last for one in found if one is not None]
    assert all(contained(json.loads(old), json.loads(new)) for old, new in zip(lines, encoded_events(), strict=False))


def test_events_of_a_later_version_are_passed_over_or_read_as_far_as_they_are_known():
    known = encoded_events()[1]

    assert event.decode(known.replace(b'"message"', b'"dream"', 1)) is None
    assert event.decode(json.dumps(with_news(json.loads(known))).encode()) == event.decode(known)


@pytest.mark.parametrize("release", RELEASES, ids=lambda path: path.name)
def test_the_hint_is_the_same_bytes_in_every_release(release):
    assert recorded(release, "message").strip() == queue.message("run_1", "claude", "run_1-1")


if __name__ == "__main__":
    write(FOLDER / sys.argv[1])
