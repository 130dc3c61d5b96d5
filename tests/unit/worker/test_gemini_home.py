"""What a resident gemini keeps on disk of the runs on it."""

import json
from pathlib import Path

import pytest

from worker.backends import gemini_acp as acp
from worker.warm import gemini_home
from worker.warm.gemini_home import Home

ONE, OTHER = "11111111-a", "22222222-b"


@pytest.fixture
def own(tmp_path: Path) -> Path:
    (tmp_path / "scratch" / "tmp").mkdir(parents=True)
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


@pytest.fixture
def home(own: Path) -> Home:
    return Home(str(own), str(own.parent / "scratch"))


def chats(own: Path, cwd: str) -> Path:
    return own / ".gemini" / "tmp" / acp.project(cwd) / "chats"


def written(own: Path, cwd: str, id: str, words: str = "words") -> Path:
    """As the CLI does it."""
    path = chats(own, cwd) / f"session-2026-11-21T12-00-{id[:8]}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(words)
    return path


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_the_marker_says_whose_a_directory_is(own, home):
    home.enter("/w")

    assert [path.read_text() for path in files(own)] == ["/w", "/w"]


def test_nothing_stays_of_the_last_run_in_a_directory(own, home):
    home.enter("/w")
    written(own, "/w", ONE)
    (own.parent / "scratch" / "tmp" / "gemini-client-error-x.json").write_text("words")

    home.leave("/w", ONE)

    assert not files(own.parent)


def test_who_leaves_a_shared_directory_takes_its_own_session_alone(own, home):
    home.enter("/w")
    home.enter("/w")
    mine, theirs = written(own, "/w", ONE), written(own, "/w", OTHER)

    home.leave("/w", ONE)

    assert not mine.exists()
    assert theirs.exists()


def test_what_is_written_after_the_end_goes_with_the_next(own, home):
    home.enter("/w")
    home.leave("/w", ONE)
    late = written(own, "/w", ONE)
    home.enter("/v")

    home.leave("/v", OTHER)

    assert not late.exists()


def test_a_loaded_session_goes_on_in_its_own_file_and_not_in_the_one_beside_it(own, home):
    home.enter("/w")
    home.put("/w", ONE, b"{}")
    written(own, "/w", ONE, "the one that is never used")
    loaded = chats(own, "/w") / (acp.chat_file(ONE) + "l")
    loaded.write_text("the conversation")

    assert home.chat("/w", ONE) == (loaded.name, b"the conversation")
    assert home.chat("/w", OTHER) is None


def test_a_kept_session_lies_where_the_cli_looks_for_it(own):
    gemini_home.keep(str(own), "/w", ("session-x-11111111.jsonl", b"words"))

    assert (chats(own, "/w") / "session-x-11111111.jsonl").read_bytes() == b"words"
    assert (own / ".gemini" / "tmp" / acp.project("/w") / ".project_root").read_text() == "/w"


@pytest.mark.parametrize(("name", "taken"), [("work", True), ("../../x", False), (7, False)])
def test_a_name_that_the_cli_has_for_the_directory_is_taken_if_it_is_one(own, name, taken):
    (own / ".gemini").mkdir()
    (own / ".gemini" / "projects.json").write_text(json.dumps({"projects": {"/w": name}}))

    gemini_home.keep(str(own), "/w", ("s.jsonl", b"words"))

    folder = name if taken else acp.project("/w")
    assert (own / ".gemini" / "tmp" / folder / "chats" / "s.jsonl").exists()


def test_a_link_in_a_session_s_home_is_not_followed(own):
    (own.parent / "outside").mkdir()
    (own / ".gemini").symlink_to(own.parent / "outside")

    with pytest.raises(OSError, match="replaced by a link"):
        gemini_home.keep(str(own), "/w", ("s.jsonl", b"words"))
    assert not files(own.parent / "outside")


def test_a_directory_that_configures_is_told_from_what_lies_above_the_service_s_own(tmp_path):
    scratch = tmp_path / "clinvk" / "runs" / "r"
    work = tmp_path / "projects" / "p" / "src"
    for folder in (scratch, work):
        folder.mkdir(parents=True)
    (tmp_path / ".env").write_text("A=1")  # alike for all

    assert not gemini_home.configured(str(work), str(scratch))
    assert not gemini_home.configured(str(scratch), str(scratch))
    (work.parent / ".env").symlink_to("/nowhere-yet")
    assert gemini_home.configured(str(work), str(scratch))
    (work.parent / ".env").unlink()
    (work / ".gemini").mkdir()
    assert gemini_home.configured(str(work), str(scratch))
    assert not gemini_home.configured(str(work.parent), str(scratch))
