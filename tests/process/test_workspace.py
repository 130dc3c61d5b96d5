"""Which directories a run may use, those that are made for it, and their removal."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.errors import BackendUnavailable, InvalidRequest
from worker.removal import Heap
from worker.workspace import Workspaces

ROOT = Path(__file__).parents[2]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tmp_path.resolve()


@pytest.fixture
def user_home(base: Path) -> Path:
    home = base / "homes" / "me"
    home.mkdir(parents=True)
    return home


@pytest.fixture
def spaces(base: Path, user_home: Path) -> Iterator[Workspaces]:
    made = Workspaces(base / "clinvk", user_home)
    yield made
    made.close()


def mode(path: str | Path) -> int:
    return os.stat(path).st_mode & 0o7777


def refusal(spaces: Workspaces, path: str | Path, field: str = "workdir") -> InvalidRequest:
    with pytest.raises(InvalidRequest) as raised:
        spaces.judge(str(path), field)
    return raised.value


# -- made and removed


def test_a_run_without_a_workdir_gets_fresh_private_directories_and_leaves_none(spaces: Workspaces, user_home: Path):
    place = spaces.make("run_1", None, None)

    run = spaces.home / "runs" / "run_1"
    assert (place.cwd, place.scratch, place.own_home) == (f"{run}/work", str(run), f"{run}/home")
    assert place.home == str(user_home)
    assert {mode(path) for path in (run, place.cwd, place.scratch, f"{place.scratch}/tmp", place.own_home)} == {0o700}
    assert os.listdir(place.cwd) == os.listdir(place.own_home) == []
    spaces.remove("run_1")
    assert os.listdir(spaces.home / "runs") == os.listdir(spaces.home / "trash") == []


def test_a_umask_takes_nothing_from_the_owner_and_gives_nothing_to_others(base: Path, user_home: Path):
    before = os.umask(0)
    try:
        spaces = Workspaces(base / "open", user_home)
        place = spaces.make("run_1", None, None)
    finally:
        os.umask(before)

    assert {mode(path) for path in (base / "open", spaces.home / "runs", place.cwd, place.scratch)} == {0o700}
    spaces.close()


def test_a_sessions_directories_outlive_its_runs_until_it_is_deleted(spaces: Workspaces):
    first = spaces.make("run_1", "ses_1", None)
    (Path(first.cwd) / "notes").write_text("kept")
    (Path(first.own_home) / "history").write_text("kept")
    spaces.remove("run_1")

    second = spaces.make("run_2", "ses_1", None)

    assert (second.cwd, second.own_home) == (first.cwd, first.own_home)
    assert second.scratch != first.scratch
    assert (Path(second.cwd) / "notes").read_text() == "kept"
    spaces.remove("run_2")
    spaces.remove_session("ses_1")
    assert os.listdir(spaces.home / "sessions") == os.listdir(spaces.home / "runs") == []


def test_with_a_workdir_of_the_callers_none_is_made(spaces: Workspaces, base: Path):
    project = base / "project"
    project.mkdir()

    place = spaces.make("run_1", None, str(project), [str(base)][:0])

    assert place.cwd == str(project)
    assert not (spaces.home / "runs" / "run_1" / "work").exists()
    spaces.remove("run_1")
    assert project.is_dir()


def test_a_home_that_nobody_needs_is_not_made(spaces: Workspaces):
    place = spaces.make("run_1", None, None, own_home=False)

    assert not Path(place.own_home).exists()


def test_what_an_attempt_before_has_left_is_not_found_by_the_next(spaces: Workspaces):
    place = spaces.make("run_1", None, None)
    (Path(place.cwd) / "old").write_text("old")

    again = spaces.make("run_1", None, None)

    assert again.cwd == place.cwd
    assert os.listdir(again.cwd) == []


def test_removal_follows_no_link(spaces: Workspaces, base: Path):
    precious = base / "precious"
    (precious / "tmp").mkdir(parents=True)
    (precious / "file").write_text("kept")
    place = spaces.make("run_1", None, None)
    (Path(place.cwd) / "link").symlink_to(precious)
    (Path(place.own_home) / "file").symlink_to(precious / "file")
    os.rename(place.cwd, place.cwd + "-away")
    os.symlink(precious, place.cwd)

    spaces.remove("run_1")

    assert (precious / "file").read_text() == "kept"
    assert (precious / "tmp").is_dir()
    assert (precious / "tmp").is_dir()
    assert os.listdir(spaces.home / "runs") == os.listdir(spaces.home / "trash") == []


def test_a_link_in_the_place_of_a_run_is_removed_and_not_followed(spaces: Workspaces, base: Path):
    precious = base / "precious"
    precious.mkdir()
    (precious / "file").write_text("kept")
    (spaces.home / "runs" / "run_1").symlink_to(precious)

    spaces.remove("run_1")

    assert (precious / "file").exists()
    assert os.listdir(spaces.home / "runs") == os.listdir(spaces.home / "trash") == []


READ_ONLY = """
import concurrent.futures.thread, os, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from worker.workspace import Workspaces
if os.geteuid() == 0:
    os.setegid(65534); os.seteuid(65534)
spaces = Workspaces(Path(sys.argv[2]), Path(sys.argv[2]))
place = spaces.make("run_1", None, None)
inner = Path(place.cwd) / "a" / "b"
inner.mkdir(parents=True)
(inner / "file").write_text("x")
(Path(place.cwd) / "closed").mkdir(mode=0)
for path in (inner, inner.parent, Path(place.cwd), Path(place.scratch) / "tmp"):
    path.chmod(0o500)
spaces.remove("run_1")
spaces.close()
print(os.listdir(spaces.home / "runs"), os.listdir(spaces.home / "trash"))
"""


def test_what_is_read_only_or_closed_is_removed_also_by_a_user_who_is_not_root(base: Path):
    import tempfile

    with tempfile.TemporaryDirectory() as folder:  # pytest's own are closed to others
        os.chmod(folder, 0o777)
        command = [sys.executable, "-c", READ_ONLY, str(ROOT), f"{folder}/home"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)

    assert (done.stdout.strip(), done.stderr) == ("[] []", "")


def test_a_tree_deeper_than_any_path_and_wider_than_one_portion_is_removed(base: Path, user_home: Path):
    spaces = Workspaces(base / "clinvk", user_home)
    place = spaces.make("run_1", None, None)
    fd = os.open(place.cwd, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("deeper", dir_fd=fd)
        below = os.open("deeper", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    for i in range(300):
        (Path(place.scratch) / f"file{i}").touch()

    spaces.remove("run_1")

    assert os.listdir(spaces.home / "runs") == []  # at once
    spaces.close()
    assert os.listdir(spaces.home / "trash") == []


def test_a_portion_is_no_more_than_was_asked_for(base: Path):
    root = base / "heap"
    root.mkdir()
    for i in range(30):
        (root / str(i)).touch()
    heap = Heap(str(root))

    assert not heap.remove(10)
    assert len(os.listdir(root)) == 20
    heap.remove_all()
    assert not root.exists()


def test_a_file_or_nothing_where_a_directory_was_is_no_error(base: Path):
    (base / "file").touch()

    assert Heap(str(base / "file")).remove(10)
    assert Heap(str(base / "nothing")).remove(10)

    assert not (base / "file").exists()


# -- shared by several worker processes


def test_the_only_worker_of_a_home_removes_what_a_crash_left(base: Path, user_home: Path):
    crashed = Workspaces(base / "clinvk", user_home)
    crashed.make("run_1", None, None)
    kept = crashed.make("run_2", "ses_1", None)
    (crashed.home / "trash" / "half").mkdir()

    spaces = Workspaces(base / "clinvk", user_home)

    assert spaces.claim()
    assert os.listdir(spaces.home / "runs") == []
    assert Path(kept.cwd).is_dir()
    spaces.close()
    assert os.listdir(spaces.home / "trash") == []
    crashed.close()


def test_a_second_worker_leaves_alone_what_may_be_the_firsts_and_the_first_may_go_first(base: Path, user_home: Path):
    first, second, third = (Workspaces(base / "clinvk", user_home) for _ in range(3))
    assert first.claim()
    assert not second.claim()
    place = second.make("run_1", None, None)
    first.close()

    assert not third.claim()

    assert Path(place.cwd).is_dir()
    third.close()
    second.close()


# -- the caller's directories


@pytest.mark.parametrize("path", ["", "relative", "./x", "~/x", "/tmp/\0"])
def test_a_path_that_is_not_absolute_is_refused_by_name(spaces: Workspaces, path):
    error = refusal(spaces, path, "tasks[1].workdir")

    assert error.field == "tasks[1].workdir"
    assert "absolute" in error.message


SYSTEM = "/ /etc /etc/ssl /proc/self /proc/self/cwd/.. /sys /dev/shm /usr /usr/../etc /bin /lib /var /var/lib /var/run"
SYSTEM += f" /run //etc /boot/x/y {ROOT} {ROOT.parent} {ROOT / 'worker'}"


@pytest.mark.parametrize("path", SYSTEM.split())
def test_places_of_the_system_and_of_the_service_are_refused(spaces: Workspaces, path):
    assert "may not be used" in refusal(spaces, path).message


def test_nobody_learns_whether_there_is_something_in_a_blocked_place(spaces: Workspaces):
    there, not_there = refusal(spaces, "/etc/ssl").message, refusal(spaces, "/etc/nothing-of-the-kind").message

    assert there.replace("ssl", "X") == not_there.replace("nothing-of-the-kind", "X")


def test_the_services_home_the_users_home_and_what_holds_them_are_refused(spaces: Workspaces, base, user_home):
    (user_home / "project").mkdir()
    place = spaces.make("run_1", "ses_1", None)

    for path in (spaces.home, spaces.home / "runs", place.cwd, base, user_home, user_home.parent):
        assert "may not be used" in refusal(spaces, path).message
    assert spaces.judge(str(user_home / "project"), "workdir") == str(user_home / "project")


@pytest.mark.parametrize(
    "secret", [".ssh", ".gnupg", ".aws", ".kube", ".claude", ".codex/sessions", ".config/gcloud/x"]
)
def test_secrets_are_refused_in_any_home(spaces: Workspaces, base: Path, secret):
    path = base / "homes" / "other" / secret
    path.mkdir(parents=True)

    assert "secrets" in refusal(spaces, path).message


def test_a_link_is_judged_by_where_it_leads(spaces: Workspaces, base: Path):
    project = base / "project"
    project.mkdir()
    (base / "good").symlink_to(project)
    (base / "bad").symlink_to("/etc")
    (base / "loop").symlink_to(base / "loop")

    assert spaces.judge(str(base / "good"), "workdir") == str(project)
    assert "/etc is blocked" in refusal(spaces, base / "bad").message
    assert "may not be used" in refusal(spaces, base / "bad" / "ssl").message
    refusal(spaces, base / "loop")


def test_what_is_no_directory_is_refused(spaces: Workspaces, base: Path):
    (base / "file").touch()

    assert "does not exist" in refusal(spaces, base / "nothing").message
    assert "not a directory" in refusal(spaces, base / "file").message
    assert "not a directory" in refusal(spaces, base / "file" / "x").message
    refusal(spaces, "/" + "x" * 300)
    refusal(spaces, "/x" * 5000)


def test_allowed_prefixes_are_resolved_and_compared_by_whole_components(base: Path, user_home: Path):
    for name in ("srv/app", "srv/app-secret"):
        (base / name / "inner").mkdir(parents=True)
    (base / "alias").symlink_to(base / "srv" / "app")
    spaces = Workspaces(base / "clinvk", user_home, allowed=[str(base / "alias")])

    assert spaces.judge(str(base / "srv" / "app" / "inner"), "workdir")
    assert spaces.judge(str(base / "alias"), "workdir") == str(base / "srv" / "app")
    message = refusal(spaces, base / "srv" / "app-secret" / "inner").message
    assert str(base / "srv" / "app") in message
    assert "outside" in message
    assert refusal(spaces, base / "srv" / "app" / ".." / "app-secret")
    spaces.close()


def test_configuration_adds_to_what_is_blocked_and_allows_nothing_of_it(base: Path, user_home: Path):
    (base / "srv" / "secret").mkdir(parents=True)
    spaces = Workspaces(
        base / "clinvk", user_home, allowed=["/etc", str(base / "srv")], blocked=[str(base / "srv" / "secret")]
    )

    assert "/etc is blocked" in refusal(spaces, "/etc/ssl").message
    assert "is blocked" in refusal(spaces, base / "srv" / "secret").message
    assert spaces.judge(str(base / "srv"), "workdir")
    spaces.close()


def test_added_directories_are_judged_likewise_and_by_their_number(spaces: Workspaces, base: Path):
    (base / "lib").mkdir()

    assert spaces.make("run_1", None, None, [str(base / "lib")]).add_dirs == (str(base / "lib"),)
    with pytest.raises(InvalidRequest) as raised:
        spaces.make("run_2", None, None, [str(base / "lib"), "/etc"])

    assert raised.value.field == "add_dirs[1]"
    assert os.listdir(spaces.home / "runs") == ["run_1"]


def test_a_link_that_comes_between_the_look_and_the_opening_is_noticed(spaces: Workspaces, base: Path, monkeypatch):
    project, other = base / "project", base / "other"
    project.mkdir()
    other.mkdir()

    def swap(real: str) -> None:
        project.rename(base / "away")
        (base / "project").symlink_to(other)

    monkeypatch.setattr(spaces, "_reason_against", swap)

    refusal(spaces, project)


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".", "..", "x\0"])
def test_an_id_that_is_no_name_is_refused(spaces: Workspaces, name):
    with pytest.raises(InvalidRequest):
        spaces.make(name, None, None)
    with pytest.raises(InvalidRequest):
        spaces.make("run_1", name, None)


def test_a_disk_that_gives_no_directory_is_this_hosts_trouble_and_not_the_callers(base: Path, user_home: Path):
    spaces = Workspaces(base / "clinvk", user_home)
    os.rmdir(spaces.home / "runs")
    (spaces.home / "runs").touch()

    with pytest.raises(BackendUnavailable, match="this host"):
        spaces.make("run_1", None, None)

    spaces.close()


def test_the_removal_of_a_session_of_another_host_is_no_error(spaces: Workspaces):
    spaces.remove_session("ses_unknown")
    spaces.remove_session("../runs")

    assert (spaces.home / "runs").is_dir()


@pytest.mark.parametrize("path", ["/" + "a/" * 400_000, "/" + "b" * 4096])
def test_a_path_that_no_system_has_is_not_looked_up(spaces, path):
    with pytest.raises(InvalidRequest, match="fewer than 4096 bytes"):
        spaces.judge(path, "workdir")


def test_more_directories_than_anybody_means_are_not_looked_at(spaces):
    with pytest.raises(InvalidRequest, match="at most 64"):
        spaces.make("run_many", None, None, ["/srv"] * 65)
