"""How much memory is held and how much is left, by the kernel's own files."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from worker.warm import memory

GIB = 1 << 30
MIB = 1 << 20


def host(folder: Path, *, total: int = 16 * GIB, left: int = 8 * GIB, groups: str = "0::/\n") -> Path:
    """A /proc with so much memory, of whose process `self` these are the control groups."""
    (folder / "proc" / "self").mkdir(parents=True)
    meminfo = f"MemTotal: {total // 1024} kB\nMemFree: 1 kB\nMemAvailable: {left // 1024} kB\n"
    (folder / "proc" / "meminfo").write_text(meminfo)
    (folder / "proc" / "self" / "cgroup").write_text(groups)
    (folder / "cgroup").mkdir()
    return folder


def group(folder: Path, path: str, **files: object) -> None:
    at = folder / "cgroup" / path
    at.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (at / name.replace("memory_", "memory.")).write_text(f"{content}\n")


def short(folder: Path) -> bool:
    return memory.short(str(folder / "proc"), str(folder / "cgroup"))


@pytest.mark.parametrize(
    ("total", "left", "is_short"),
    [
        (16 * GIB, 1 * GIB, False),
        (16 * GIB, 700 * MIB, True),  # 5 % of it
        (2 * GIB, 300 * MIB, False),
        (2 * GIB, 200 * MIB, True),
        (256 * MIB, 10 * MIB, False),  # so small that the measure says nothing
    ],
)
def test_a_host_is_short_below_a_part_of_its_memory(tmp_path, total, left, is_short):
    assert short(host(tmp_path, total=total, left=left)) is is_short


def test_a_container_that_is_its_own_root_is_held_to_its_limit(tmp_path):
    group(host(tmp_path), "", memory_max=2 * GIB, memory_current=2 * GIB - 100 * MIB, memory_stat="inactive_file 0")

    assert short(tmp_path)


def test_files_that_were_read_long_ago_are_no_shortage(tmp_path):
    stat = f"anon 5\ninactive_file {1 * GIB}"
    group(host(tmp_path), "", memory_max=2 * GIB, memory_current=2 * GIB - 100 * MIB, memory_stat=stat)

    assert not short(tmp_path)


def test_a_units_limit_is_seen_from_below_and_without_a_namespace(tmp_path):
    host(tmp_path, groups="0::/system.slice/clinvk-worker.service/inner\n")
    group(tmp_path, "system.slice", memory_max="max", memory_current=9 * GIB)
    group(tmp_path, "system.slice/clinvk-worker.service", memory_max=2 * GIB, memory_current=2 * GIB - 9 * MIB)
    group(tmp_path, "system.slice/clinvk-worker.service/inner", memory_max="max", memory_current=1 * GIB)

    assert short(tmp_path)


def test_a_limit_at_which_the_kernel_slows_the_unit_down_counts_too(tmp_path):
    host(tmp_path, groups="0::/unit\n")
    group(tmp_path, "unit", memory_max=8 * GIB, memory_high=2 * GIB, memory_current=2 * GIB - 9 * MIB)

    assert short(tmp_path)


def test_the_first_version_of_control_groups_is_read_too(tmp_path):
    host(tmp_path, groups="9:name=systemd:/\n4:cpu,memory:/box/one\n0::/\n")
    (tmp_path / "cgroup" / "memory").mkdir()
    assert not short(tmp_path)

    used = {"memory_limit_in_bytes": 2 * GIB, "memory_usage_in_bytes": 2 * GIB - 9 * MIB}
    group(tmp_path, "memory/box/one", **used, memory_stat="total_inactive_file 0")

    assert short(tmp_path)


@pytest.mark.parametrize("groups", ["", "nonsense\n", "0::/../../elsewhere\n", "4:memory:\n"])
def test_what_cannot_be_read_limits_nothing(tmp_path, groups):
    host(tmp_path, groups=groups)
    group(tmp_path, "", memory_max="none of these", memory_current="x")

    assert not short(tmp_path)


def test_a_process_holds_what_it_has_touched():
    held = 64 * MIB
    code = f"import sys; data = b'x' * {held}; print('here', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-S", "-E", "-c", code], bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"here\n"
        pids = [child.pid, 2**22 + 1]  # no such process

        assert held < memory.rss(pids) < held + 64 * MIB
        assert held < memory.pss(pids) <= memory.rss(pids)

    assert memory.rss([os.getpid()]) > 0
    assert memory.rss(pids) == 0
