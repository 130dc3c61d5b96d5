"""Which of a warm process' descendants are of which of its runs.

A run's processes are known by its tag, by CLINVK_RUN in their environment (where the CLI can set that for a run), by a
working directory that is the run's own, or because they descend from one that is known so. What is known is given the
run's tag (`claim`), which fork and exec keep. Tag and variable are the tools' to forge: they say something only where they
are of a run that is on the process now.
"""

import os
from collections.abc import Collection, Mapping
from typing import NamedTuple

from worker import tree


class Whereabouts(NamedTuple):
    """What tells a run's processes."""

    host_tag: int
    own: Collection[tree.Seen]  # what the warm process started for itself before its first run
    mark: tree.Mark
    folders: Collection[str]
    others: Mapping[str, int]  # the tags of the other runs on the process, by the runs' ids


class Found(NamedTuple):
    mine: list[tree.Seen]
    unknown: list[tree.Seen]  # of the warm process, and of no run that can be told
    believable: bool  # a look at a moment when nothing was between two places


def look(host: int | None, at: Whereabouts) -> Found:
    """`host`: the warm process, None if it is gone."""
    mark = at.mark
    believable = True
    roots: list[tree.Seen] = []
    for pid in tree.orphans():
        seen = tree.look(pid)
        tag = tree.tag_of(pid)
        if seen is None or (seen.state in "ZX" and tree.reap(pid)):
            believable = False
        elif tag in (mark.tag, at.host_tag) or (not tag and _run_of(pid) == mark.run_id):
            roots.append(seen)
    found = [*roots, *tree.below([*([] if host is None else [host]), *(seen.pid for seen in roots)])]
    by_pid = {seen.pid: seen for seen in found}
    spared = {(seen.pid, seen.start) for seen in at.own}
    known: dict[int, str] = {}

    def whose(seen: tree.Seen) -> str:
        """mine, theirs, host or nothing."""
        if seen.pid not in known:
            known[seen.pid] = ""  # a pid cannot be its own ancestor, but a look is no single moment
            known[seen.pid] = _whose(seen, at) or ("host" if (seen.pid, seen.start) in spared else "")
            if not known[seen.pid] and (parent := by_pid.get(seen.ppid)) is not None:
                known[seen.pid] = whose(parent)
        return known[seen.pid]

    alive = [seen for seen in found if seen.state not in "ZX"]
    return Found(
        [seen for seen in alive if whose(seen) == "mine"],
        [seen for seen in alive if not whose(seen)],
        believable,
    )


def claim(host: int, at: Whereabouts) -> None:
    for seen in look(host, at).mine:
        tree.retag(seen, at.mark.tag)


def _whose(seen: tree.Seen, at: Whereabouts) -> str:
    tag = tree.tag_of(seen.pid)
    if tag == at.mark.tag:
        return "mine"
    if tag in at.others.values():
        return "theirs"
    run = _run_of(seen.pid)
    if run == at.mark.run_id:
        return "mine"
    if run in at.others:
        return "theirs"
    try:
        cwd = os.readlink(f"/proc/{seen.pid}/cwd")
    except OSError:
        return ""
    return "mine" if any(cwd == folder or cwd.startswith(folder + "/") for folder in at.folders) else ""


def _run_of(pid: int) -> str:
    return tree.environ(pid).get(tree.RUN.encode(), b"").decode(errors="replace")
