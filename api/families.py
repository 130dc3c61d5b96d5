"""From what has been counted and told to Prometheus' metrics; pure. Every figure is the same whichever replica shows it."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

import msgspec
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from shared.host import Instance, Readiness, Vitals
from shared.routing import KNOWN_BACKENDS
from shared.store.runs import Line
from shared.tally import COARSE, FINE


class Store(msgspec.Struct, frozen=True, kw_only=True):
    """What the store itself says at one look."""

    totals: Mapping[str, int]
    counts: Mapping[str, int]  # runs that have not ended, by status
    lines: Mapping[str, Line]  # by queue
    oldest_s: float
    swept_s: float
    fleet: Sequence[Instance]
    apis: Sequence[Vitals]
    drained: frozenset[str]
    round_trip_s: float
    memory_bytes: int
    memory_max_bytes: int  # 0: no limit


def of_store(store: Store) -> list[Metric]:
    return [
        *_of_totals(store.totals),
        *_of_lines(store),
        *_of_fleet(store.fleet, store.drained),
        *_of_warm(store.fleet),
        *_of_redis(store),
    ]


# what is counted -> metric, meaning, labels
_COUNTERS: Mapping[str, tuple[str, str, tuple[str, ...]]] = {
    "ended": ("clinvk_runs_ended", "Runs by how they ended", ("backend", "status", "code", "cause")),
    "tokens": ("clinvk_tokens", "Tokens of ended runs", ("backend", "kind")),
    "cost_microusd": ("clinvk_cost_usd", "What ended runs cost, where their CLI says so", ("backend",)),
    "lease_lost": ("clinvk_lease_losses", "Runs whose worker was lost", ("backend",)),
    "mended": ("clinvk_sweep_mended", "What sweeps have put right", ("what",)),
    "http": ("clinvk_http_requests", "Requests answered", ("method", "route", "status")),
    "gap": ("clinvk_relay_gap_fills", "Followers that had to read the stream again", ("reason",)),
}
# What is told before it has happened once: Prometheus sees no increase in a count that is new.
_FROM_ZERO: Mapping[str, Sequence[tuple[str, ...]]] = {"lease_lost": [(name,) for name in KNOWN_BACKENDS]}
# what is observed -> metric, its label, its meaning, the bounds
_HISTOGRAMS: Mapping[str, tuple[str, str, str, Sequence[float], float]] = {
    "wait": ("clinvk_run_wait_seconds", "backend", "From the request to the start of a run", COARSE, 1e3),
    "first": ("clinvk_run_first_event_seconds", "backend", "From the request to a run's first event", COARSE, 1e3),
    "took": ("clinvk_run_duration_seconds", "backend", "From the start of a run to its end", COARSE, 1e3),
    "first_byte": ("clinvk_http_first_byte_seconds", "route", "From a request to its answer's head", FINE, 1e6),
    "relay_lag": ("clinvk_relay_lag_seconds", "", "From an event's stamp to its follower's socket", FINE, 1e6),
}


def _of_totals(totals: Mapping[str, int]) -> Iterator[Metric]:
    counted: dict[str, Counter[tuple[str, ...]]] = {what: Counter() for what in _COUNTERS}
    observed: dict[tuple[str, str], dict[str, int]] = {}
    for name, value in totals.items():
        what, *labels = name.split("|")
        stem = what.removesuffix("_ms").removesuffix("_us")
        if what in counted:
            # An older version counted with fewer labels.
            width = len(_COUNTERS[what][2])
            counted[what][(*labels, *[""] * width)[:width]] += value
        elif stem in _HISTOGRAMS:
            label = labels[0] if labels else ""
            observed.setdefault((stem, label), {})["sum" if stem != what else labels[-1]] = value
    for what, (metric, text, names) in _COUNTERS.items():
        counter = CounterMetricFamily(metric, text, labels=names)
        for filled in _FROM_ZERO.get(what, ()):
            counted[what][filled] += 0
        for filled, value in counted[what].items():
            counter.add_metric(filled, value / 1e6 if what == "cost_microusd" else value)
        yield counter
    for what, (metric, label_name, text, bounds, scale) in _HISTOGRAMS.items():
        family = HistogramMetricFamily(metric, text, labels=(label_name,) if label_name else ())
        known = [label for stem, label in observed if stem == what]
        for label in sorted(known) if label_name else [""]:
            found = observed.get((what, label), {})
            so_far, buckets = 0, []
            for le in (*(f"{bound:g}" for bound in bounds), "+Inf"):
                so_far += found.get(le, 0)
                buckets.append((le, float(so_far)))
            family.add_metric((label,) if label_name else (), buckets, found.get("sum", 0) / scale)
        yield family


def _of_lines(store: Store) -> Iterator[Metric]:
    runs = GaugeMetricFamily("clinvk_runs", "Runs that have not ended", labels=("status",))
    for status, number in store.counts.items():
        runs.add_metric((status,), number)
    depth = GaugeMetricFamily("clinvk_queue_depth", "Runs that wait for a worker", labels=("backend",))
    oldest = GaugeMetricFamily(
        "clinvk_queue_oldest_seconds", "For how long the first of them has waited", labels=("backend",)
    )
    wanted = GaugeMetricFamily(
        "clinvk_slots_wanted", "Runs that would start if there were another slot", labels=("backend",)
    )
    longest = GaugeMetricFamily(
        "clinvk_slots_wanted_seconds", "For how long the first of those has waited", labels=("backend",)
    )
    by_backend: dict[str, list[Line]] = {}
    for queue, line in store.lines.items():
        by_backend.setdefault(queue.partition("@")[0], []).append(line)
    for backend, lines in sorted(by_backend.items()):
        depth.add_metric((backend,), sum(line.depth for line in lines))
        oldest.add_metric((backend,), max(line.oldest_s for line in lines))
        helps = _another_slot_helps(store.fleet, backend)
        wanted.add_metric((backend,), sum(line.wanted for line in lines) if helps else 0)
        longest.add_metric((backend,), max(line.wanted_s for line in lines) if helps else 0)
    yield from (runs, depth, oldest, wanted, longest)
    yield GaugeMetricFamily(
        "clinvk_waiting_oldest_seconds", "For how long the first waiting run of all has waited", store.oldest_s
    )
    yield GaugeMetricFamily("clinvk_sweep_age_seconds", "Since the last sweep", store.swept_s)


def _another_slot_helps(fleet: Sequence[Instance], backend: str) -> bool:
    """Where all that have the CLI lack its login or its vendor's quota, one more such host would too."""
    told = [state.readiness for one in fleet for state in one.backends if state.name == backend]
    return not told or Readiness.READY in told


def _of_fleet(fleet: Sequence[Instance], drained: frozenset[str]) -> Iterator[Metric]:
    slots = GaugeMetricFamily("clinvk_worker_slots", "Runs that instances can carry at once", labels=("host",))
    running = GaugeMetricFamily("clinvk_worker_running", "Runs that instances carry", labels=("host",))
    instances = GaugeMetricFamily("clinvk_worker_instances", "Worker processes", labels=("host", "version"))
    draining = GaugeMetricFamily("clinvk_worker_draining", "Whether a host takes no runs", labels=("host",))
    ready = GaugeMetricFamily("clinvk_backend_ready", "Instances that can run a backend", labels=("backend", "host"))
    state = GaugeMetricFamily(
        "clinvk_backend_state", "Instances by what they say of a backend", labels=("backend", "host", "state")
    )
    hosts: dict[str, list[int]] = {}
    versions: dict[tuple[str, str], int] = {}
    good: dict[tuple[str, str], int] = {}
    states: dict[tuple[str, str, str], int] = {}
    for one in fleet:
        sums = hosts.setdefault(one.host, [0, 0, 0])
        sums[0] += one.slots
        sums[1] += one.running
        sums[2] = max(sums[2], int(one.draining or one.host in drained))
        versions[one.host, one.version] = versions.get((one.host, one.version), 0) + 1
        for backend in one.backends:
            key = (backend.name, one.host)
            good[key] = good.get(key, 0) + int(backend.readiness is Readiness.READY and not one.draining)
            told = (*key, backend.readiness.value)
            states[told] = states.get(told, 0) + 1
    for host, (most, now, off) in hosts.items():
        slots.add_metric((host,), most)
        running.add_metric((host,), now)
        draining.add_metric((host,), off)
    for family, numbers in ((instances, versions), (ready, good), (state, states)):
        for labels, number in numbers.items():
            family.add_metric(labels, number)
    yield from (slots, running, instances, draining, ready, state)


def _of_warm(fleet: Sequence[Instance]) -> Iterator[Metric]:
    """Of the CLIs that workers keep running; counted since the worker's start, so that its pid is a label."""
    labels = ("backend", "host", "pid")
    kept = GaugeMetricFamily("clinvk_warm_kept", "Warm processes that live", labels=labels)
    running = GaugeMetricFamily("clinvk_warm_running", "Runs on warm processes", labels=labels)
    memory = GaugeMetricFamily("clinvk_warm_memory_bytes", "Memory of warm processes", labels=labels)
    hits = CounterMetricFamily("clinvk_warm_hits", "Runs that a warm process carried out", labels=labels)
    starts = CounterMetricFamily("clinvk_warm_starts", "Warm processes started", labels=labels)
    misses = CounterMetricFamily(
        "clinvk_warm_misses", "Runs that went to a process of their own, by why", labels=(*labels, "reason")
    )
    ends = CounterMetricFamily("clinvk_warm_ends", "Warm processes ended, by why", labels=(*labels, "reason"))
    for one in fleet:
        for backend in one.backends:
            if (warm := backend.warm) is None:
                continue
            where = (backend.name, one.host, str(one.pid))
            kept.add_metric(where, warm.kept)
            running.add_metric(where, warm.running)
            memory.add_metric(where, warm.memory_bytes)
            hits.add_metric(where, warm.hits)
            starts.add_metric(where, warm.starts)
            for reason, number in warm.misses.items():
                misses.add_metric((*where, reason), number)
            for reason, number in warm.ends.items():
                ends.add_metric((*where, reason), number)
    yield from (kept, running, memory, hits, starts, misses, ends)


def _of_redis(store: Store) -> Iterator[Metric]:
    yield GaugeMetricFamily("clinvk_store_round_trip_seconds", "A PING to Redis and back", store.round_trip_s)
    yield GaugeMetricFamily("clinvk_store_memory_bytes", "What Redis uses", store.memory_bytes)
    yield GaugeMetricFamily("clinvk_store_memory_max_bytes", "What Redis may use; 0: all", store.memory_max_bytes)


def of_processes(processes: Iterable[Vitals]) -> Iterator[Metric]:
    """Of the API's and the workers' processes, and of the hosts that they are on."""
    labels = ("role", "host", "pid")
    cpu = CounterMetricFamily("clinvk_process_cpu_seconds", "CPU time", labels=labels)
    gauges = {
        "rss_bytes": GaugeMetricFamily("clinvk_process_resident_memory_bytes", "Resident memory", labels=labels),
        "open_fds": GaugeMetricFamily("clinvk_process_open_fds", "Open descriptors", labels=labels),
        "max_fds": GaugeMetricFamily("clinvk_process_max_fds", "Descriptors that may be open", labels=labels),
        "loop_lag_s": GaugeMetricFamily(
            "clinvk_process_loop_lag_seconds", "The loop's longest delay in the last 15 s", labels=labels
        ),
        "started_at": GaugeMetricFamily("clinvk_process_start_time_seconds", "Since when it lives", labels=labels),
    }
    api = {
        "requests": GaugeMetricFamily(
            "clinvk_http_requests_open", "Requests and streams under way", labels=("host", "pid")
        ),
        "streams": GaugeMetricFamily("clinvk_streams_open", "Streams under way", labels=("host", "pid")),
        "followers": GaugeMetricFamily("clinvk_followers", "Followers of runs", labels=("host", "pid")),
    }
    host_gauges = {
        "load1": GaugeMetricFamily("clinvk_host_load1", "Load of the last minute", labels=("host",)),
        "cpus": GaugeMetricFamily("clinvk_host_cpus", "Processors", labels=("host",)),
        "memory_bytes": GaugeMetricFamily("clinvk_host_memory_bytes", "Memory", labels=("host",)),
        "memory_available_bytes": GaugeMetricFamily(
            "clinvk_host_memory_available_bytes", "Memory that can be had", labels=("host",)
        ),
        "disk_free_bytes": GaugeMetricFamily(
            "clinvk_host_disk_free_bytes", "Free where runs work and data is kept", labels=("host", "role")
        ),
    }
    builds = GaugeMetricFamily("clinvk_build_info", "Processes by version", labels=("role", "version"))
    versions: dict[tuple[str, str], int] = {}
    hosts: set[str] = set()
    disks: set[tuple[str, str]] = set()
    for one in processes:
        where = (one.role, one.host, str(one.pid))
        cpu.add_metric(where, one.cpu_s)
        for name, family in gauges.items():
            family.add_metric(where, getattr(one, name))
        if one.role == "api":
            for name, family in api.items():
                family.add_metric(where[1:], getattr(one, name))
        versions[one.role, one.version] = versions.get((one.role, one.version), 0) + 1
        if (one.host, one.role) not in disks and one.disk_free_bytes >= 0:
            disks.add((one.host, one.role))
            host_gauges["disk_free_bytes"].add_metric((one.host, one.role), one.disk_free_bytes)
        if one.host not in hosts:
            hosts.add(one.host)
            for name, family in host_gauges.items():
                if name != "disk_free_bytes":
                    family.add_metric((one.host,), getattr(one, name))
    for labels_, number in versions.items():
        builds.add_metric(labels_, number)
    yield from (cpu, *gauges.values(), *api.values(), *host_gauges.values(), builds)
