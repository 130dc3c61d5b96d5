"""Draws what `clinvk top` shows: lines of at most so many columns, from what was found; pure."""

from collections.abc import Sequence

import msgspec

_PLAIN, _BOLD, _DIM, _RED, _GREEN, _YELLOW = "\x1b[0m", "\x1b[1m", "\x1b[2m", "\x1b[31m", "\x1b[32m", "\x1b[33m"


class HostRow(msgspec.Struct, frozen=True, kw_only=True):
    """One worker process."""

    host: str
    version: str
    slots: int
    running: int
    draining: bool
    backends: tuple[tuple[str, str, int], ...]  # name, state, runs
    memory_bytes: int = 0
    load: float = 0.0
    lag_s: float = 0.0


class RunRow(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    status: str
    backend: str
    tenant: str
    host: str
    for_s: float  # how long it has run, or waited
    events: int
    model: str = ""


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """One look. `failed`: why it saw nothing. `queues`: backend, runs that wait, seconds since the first of them came."""

    source: str
    clock: str
    status: str  # ok, degraded, unhealthy; unknown where it was not let in
    failed: str = ""
    reasons: tuple[str, ...] = ()
    waiting: int = 0
    queued: int = 0
    running: int = 0
    queues: tuple[tuple[str, int, float], ...] = ()
    hosts: tuple[HostRow, ...] = ()
    shows_hosts: bool = True  # False: they are not for who asks, which is not the same as none
    runs: tuple[RunRow, ...] = ()


def render(found: Snapshot, *, width: int = 80, height: int | None = None, color: bool = False) -> list[str]:
    """With a height, the runs that do not fit are counted instead."""
    paint = _Paint(color)
    slots, busy = sum(h.slots for h in found.hosts), sum(h.running for h in found.hosts)
    tint = {"ok": _GREEN, "degraded": _YELLOW}.get(found.status, _RED)
    head = f"clinvk {found.status}  {found.clock}  {found.source}"
    lines = [paint(fit(head, width), _BOLD + tint)]
    lines += [paint(fit(f"  {found.failed}", width), _RED)] if found.failed else []
    lines += [paint(fit(f"  {reason}", width), tint) for reason in found.reasons]
    if found.failed:  # figures of nothing would be read as an empty service
        return lines if height is None else lines[:height]
    numbers = f"running {found.running}  queued {found.queued}  waiting {found.waiting}"
    numbers += f"  slots {busy}/{slots}" if found.shows_hosts else ""
    lines.append(fit(f"{numbers}  {bar(busy, slots, max(width - len(numbers) - 2, 0))}".rstrip(), width))
    waits = [f"{name} {count} ({span(age)})" for name, count, age in found.queues if count]
    if waits:
        lines.append(paint(fit("waiting: " + "  ".join(waits), width), _YELLOW))
    hidden = [paint(fit("the workers are not shown", width), _DIM)]
    lines += ["", *(_hosts(found.hosts, width, paint) if found.shows_hosts else hidden)]
    heads = f"{'RUN':28} {'STATUS':7} {'FOR':>5} {'EVENTS':>6} {'BACKEND':7} {'HOST':10} TENANT"
    lines += ["", paint(fit(heads, width), _BOLD)]
    room = len(found.runs) if height is None else max(height - len(lines) - 1, 0)
    lines += [paint(fit(_run(run), width), "" if run.status == "running" else _DIM) for run in found.runs[:room]]
    left = found.running + found.queued + found.waiting - len(found.runs[:room])
    if left > 0:
        lines.append(paint(fit(f"and {left} more", width), _DIM))
    elif not found.runs:
        lines.append(paint(fit("no run is under way", width), _DIM))
    return lines if height is None else lines[:height]


def _hosts(hosts: Sequence[HostRow], width: int, paint: "_Paint") -> list[str]:
    wide = width >= 100
    version = f"{'VERSION':8} " if wide else ""
    heads = f"{'HOST':16} {version}{'RUNS':>7} {'MEM':>5} {'LOAD':>5} {'LAG':>5}  BACKENDS"
    lines = [paint(fit(heads, width), _BOLD)]
    for one in hosts:
        told = "  ".join(_backend(*backend) for backend in one.backends)
        version = f"{fit(one.version, 8):8} " if wide else ""
        words = f"{fit(one.host, 16):16} {version}{one.running:>3}/{one.slots:<3} {size(one.memory_bytes):>5}"
        words += f" {one.load:5.1f} {span(one.lag_s):>5}  {'draining  ' if one.draining else ''}{told}"
        bad = any(state not in ("ready", "not_installed") for _, state, _ in one.backends)
        lines.append(paint(fit(words, width), _YELLOW if bad or one.draining else ""))
    return lines if hosts else [*lines, paint(fit("no worker is connected", width), _RED)]


def _run(run: RunRow) -> str:
    words = f"{fit(run.id, 28):28} {fit(run.status, 7):7} {span(run.for_s):>5} {run.events:6} {fit(run.backend, 7):7}"
    return f"{words} {fit(run.host or '-', 10):10} {run.tenant}"


class _Paint:
    """Colours, where they are wanted."""

    def __init__(self, on: bool) -> None:
        self._on = on

    def __call__(self, text: str, code: str) -> str:
        return f"{code}{text}{_PLAIN}" if self._on and code else text


def _backend(name: str, state: str, running: int) -> str:
    if state == "ready":
        return f"{name}:{running}" if running else name
    return f"-{name}" if state == "not_installed" else f"{name}!{state}"


def fit(text: str, width: int) -> str:
    """Of what others may have named, nothing moves the cursor."""
    clean = "".join(char if char.isprintable() else "?" for char in text)
    return clean if len(clean) <= width else clean[: max(width - 1, 0)] + ("~" if width else "")


def bar(part: int, whole: int, width: int) -> str:
    inner = min(width - 2, 30)
    if whole <= 0 or inner < 4:
        return ""
    full = min(round(part / whole * inner), inner)
    return "[" + "#" * full + "." * (inner - full) + "]"


def span(seconds: float) -> str:
    """At most five characters: 950ms, 3.2s, 59s, 12m, 7h, 3d."""
    if seconds < 0:
        return "-"
    if seconds < 1:
        return f"{seconds * 1000:.0f}ms"
    if seconds < 10:
        return f"{seconds:.1f}s"
    for unit, length, most in (("s", 1, 120), ("m", 60, 120 * 60), ("h", 3600, 48 * 3600)):
        if seconds < most:
            return f"{seconds / length:.0f}{unit}"
    return f"{seconds / 86400:.0f}d"


def size(count: float) -> str:
    for unit in ("B", "K", "M", "G"):
        if count < 1024 or unit == "G":
            return f"{count:.0f}{unit}"
        count /= 1024
    raise AssertionError


def totals(queues: Sequence[tuple[str, int, float]]) -> tuple[tuple[str, int, float], ...]:
    """By backend, whatever the queue's host."""
    found: dict[str, tuple[int, float]] = {}
    for queue, count, age_s in queues:
        name = queue.partition("@")[0]
        was = found.get(name, (0, 0.0))
        found[name] = (was[0] + count, max(was[1], age_s))
    return tuple((name, count, age_s) for name, (count, age_s) in sorted(found.items()))
