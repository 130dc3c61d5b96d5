"""Each alert rule is evaluated by promtool: what makes it fire, what does not, and what it then says."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from tests.deploy.found import DEPLOY, system
from tests.deploy.test_files import succeeds

RULES = DEPLOY / "prometheus" / "alerts.yml"
ALERTS = {rule["alert"]: rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]}
STEP_S = 15
Series = dict[str, str]


def steady(value: float) -> str:
    """The same for three hours, in promtool's own way of writing series."""
    return f"{value}+0x720"


def growing(per_s: float) -> str:
    return f"0+{per_s * STEP_S}x720"


class Case(NamedTuple):
    """`fires` gives one alert, with these labels and this summary; `quiet` gives none."""

    fires: Series
    summary: str
    quiet: Series
    labels: dict[str, str] = {}


def replicas(series: Series) -> Series:
    """As Prometheus has them where it scrapes two replicas by themselves."""
    found = {}
    for name, values in series.items():
        metric, brace, rest = name.partition("{")
        for instance in ("a", "b"):
            found[f'{metric}{{instance="{instance}"{"," + rest if brace else "}"}'] = values
    return found


def buckets(metric: str, fast: float, slow: float, bound: str, beyond: str, labels: str = "") -> Series:
    """A histogram of which `fast` a second lie below `bound` and `slow` a second between it and `beyond`."""
    comma = "," if labels else ""
    return {
        f'{metric}_bucket{{{labels}{comma}le="{bound}"}}': growing(fast),
        f'{metric}_bucket{{{labels}{comma}le="{beyond}"}}': growing(fast + slow),
        f'{metric}_bucket{{{labels}{comma}le="+Inf"}}': growing(fast + slow),
    }


def ended(failed: float, code: str, succeeded: float, cancelled: float = 0) -> Series:
    """Runs a second."""
    name = 'clinvk_runs_ended_total{{backend="claude",status="{}",code="{}",cause=""}}'
    return {
        name.format("failed", code): growing(failed),
        name.format("succeeded", ""): growing(succeeded),
        name.format("cancelled", "cancelled"): growing(cancelled),
    }


def answered(bad: float, good: float) -> Series:
    name = 'clinvk_http_requests_total{{method="POST",route="/api/v1/prompt",status="{}"}}'
    return {name.format(502): growing(bad), name.format(200): growing(good), name.format(404): growing(1)}


def warm_ends(reason: str) -> Series:
    name = f'clinvk_warm_ends_total{{backend="codex",host="h",pid="7",reason="{reason}"}}'
    return {name: growing(1 / 120)}


CLAUDE_ON_H = {"backend": "claude", "host": "h"}
WORKER = {"role": "worker", "host": "h", "pid": "7"}
OF_WORKER = '{role="worker",host="h",pid="7"}'
STATE = 'clinvk_backend_state{{backend="claude",host="h",state="{}"}}'
READY = 'clinvk_backend_ready{{backend="claude",host="{}"}}'

CASES = {
    "ClinvkScrapeFailing": Case(
        fires={'up{job="clinvk",instance="api:8080"}': steady(0)},
        labels={"job": "clinvk", "instance": "api:8080"},
        summary="api:8080 does not answer /metrics",
        quiet={'up{job="clinvk",instance="api:8080"}': steady(1), 'up{job="other",instance="x"}': steady(0)},
    ),
    "ClinvkNoApi": Case(
        fires={'up{job="other",instance="x"}': steady(1)},  # those that were discovered left nothing behind
        summary="No API replica answers /metrics; nobody is served, or Prometheus cannot see it",
        quiet={'up{job="clinvk",instance="a"}': steady(0), 'up{job="clinvk",instance="b"}': steady(1)},
    ),
    "ClinvkStoreDown": Case(
        fires={'clinvk_store_up{instance="a"}': steady(1), 'clinvk_store_up{instance="b"}': steady(0)},
        summary="An API replica cannot reach Redis; requests are answered with 503",
        quiet=replicas({"clinvk_store_up": steady(1)}),
    ),
    "ClinvkStoreSlow": Case(
        fires=replicas({"clinvk_store_round_trip_seconds": steady(0.25)}),
        summary="A PING to Redis takes 250ms",
        quiet=replicas({"clinvk_store_round_trip_seconds": steady(0.09)}),
    ),
    "ClinvkStoreMemoryHigh": Case(
        fires=replicas({"clinvk_store_memory_bytes": steady(90), "clinvk_store_memory_max_bytes": steady(100)}),
        summary="Redis uses 90% of its maxmemory; full, it refuses every write",
        quiet=replicas({"clinvk_store_memory_bytes": steady(90), "clinvk_store_memory_max_bytes": steady(0)}),
    ),
    "ClinvkSweepStalled": Case(
        fires=replicas({"clinvk_sweep_age_seconds": steady(20)}),
        summary="Nobody has swept for 20s; lost runs are not ended",
        quiet={
            'clinvk_sweep_age_seconds{instance="a"}': steady(20),
            'clinvk_sweep_age_seconds{instance="b"}': steady(0.5),
        },
    ),
    "ClinvkNoWorkers": Case(
        fires=replicas({"clinvk_store_up": steady(1)}),
        summary="No worker is connected; nothing can run",
        quiet=replicas({"clinvk_store_up": steady(0)}),  # who cannot ask Redis knows of no worker
    ),
    "ClinvkBackendUnavailable": Case(
        fires=replicas({READY.format("h"): steady(0), READY.format("g"): steady(0)}),
        labels={"backend": "claude"},
        summary="No host can run claude",
        quiet=replicas({READY.format("h"): steady(0), READY.format("g"): steady(1)}),
    ),
    "ClinvkBackendNotLoggedIn": Case(
        fires=replicas({STATE.format("not_logged_in"): steady(1)}),
        labels=CLAUDE_ON_H,
        summary="claude is not logged in on h",
        quiet=replicas({STATE.format("ready"): steady(1), STATE.format("not_logged_in"): steady(0)}),
    ),
    "ClinvkBackendLimited": Case(
        fires=replicas({STATE.format("limited"): steady(1)}),
        labels=CLAUDE_ON_H,
        summary="The vendor limits claude on h",
        quiet=replicas({STATE.format("ready"): steady(1), STATE.format("not_logged_in"): steady(1)}),
    ),
    "ClinvkWorkersLost": Case(
        fires=replicas({'clinvk_lease_losses_total{backend="claude"}': "0+0x60 1+0x660"}),  # the first one ever
        summary="Runs have lost their worker in the last ten minutes",
        quiet=replicas({'clinvk_lease_losses_total{backend="claude"}': steady(3)}),
    ),
    "ClinvkVersionsDiffer": Case(
        fires=replicas({f'clinvk_build_info{{role="api",version="{version}"}}': steady(1) for version in (1, 2)}),
        summary="2 versions have run side by side for an hour",
        quiet=replicas({f'clinvk_build_info{{role="{role}",version="1"}}': steady(1) for role in ("api", "worker")}),
    ),
    "ClinvkWarmCrashing": Case(
        fires=replicas(warm_ends("leaked")),
        labels={"backend": "codex", "host": "h"},
        summary="Warm codex processes on h crash, hang or leak",
        quiet=replicas(warm_ends("count")),
    ),
    "ClinvkQueueOld": Case(
        fires=replicas({'clinvk_queue_oldest_seconds{backend="claude"}': steady(90)}),
        labels={"backend": "claude"},
        summary="A run has waited for claude for 1m 30s",
        quiet=replicas({'clinvk_queue_oldest_seconds{backend="claude"}': steady(59)}),
    ),
    "ClinvkQueueLong": Case(
        fires=replicas({f'clinvk_queue_depth{{backend="{name}"}}': steady(3000) for name in ("claude", "codex")}),
        summary="6000 runs wait; at queue.max_depth (10000) new ones are refused",
        quiet=replicas({'clinvk_queue_depth{backend="claude"}': steady(3000)}),  # the same ones from each replica
    ),
    "ClinvkRunsFailing": Case(
        fires=replicas(ended(0.25, "backend_error", 0.75)),
        labels={"backend": "claude"},
        summary="25% of the runs of claude fail",
        quiet=replicas(ended(0.5, "invalid_request", 0.5, cancelled=2)),
    ),
    "ClinvkFirstEventSlow": Case(
        fires=replicas(buckets("clinvk_run_first_event_seconds", 0.5, 0.5, "30", "60", 'backend="claude"')),
        labels={"backend": "claude"},
        summary="One run of claude in twenty says nothing for 57s",
        quiet=replicas(buckets("clinvk_run_first_event_seconds", 0.98, 0.02, "30", "60", 'backend="claude"')),
    ),
    "ClinvkRequestsFailing": Case(
        fires=replicas(answered(1, 8)),
        summary="10% of the requests are answered with 5xx",
        quiet=replicas(answered(0.3, 8)),
    ),
    "ClinvkRelayLagging": Case(
        fires=replicas(buckets("clinvk_relay_lag_seconds", 1, 1, "1", "2")),
        summary="One event in a hundred takes 1.98s to its follower",
        quiet=replicas(buckets("clinvk_relay_lag_seconds", 100, 0.5, "1", "2")),
    ),
    "ClinvkRelayGaps": Case(
        fires=replicas({'clinvk_relay_gap_fills_total{reason="missed"}': growing(2)}),
        summary="Followers miss live events and read them from the stream, 2 times a second",
        quiet=replicas({'clinvk_relay_gap_fills_total{reason="slow"}': growing(20)}),
    ),
    "ClinvkLoopLagging": Case(
        fires=replicas({"clinvk_process_loop_lag_seconds" + OF_WORKER: steady(0.75)}),
        labels=WORKER,
        summary="The loop of the worker process 7 on h stands still for 750ms",
        quiet=replicas({"clinvk_process_loop_lag_seconds" + OF_WORKER: steady(0.4)}),
    ),
    "ClinvkDescriptorsLow": Case(
        fires=replicas(
            {"clinvk_process_open_fds" + OF_WORKER: steady(90), "clinvk_process_max_fds" + OF_WORKER: steady(100)}
        ),
        labels=WORKER,
        summary="The worker process 7 on h has 90% of its descriptors open",
        quiet=replicas(
            {"clinvk_process_open_fds" + OF_WORKER: steady(90), "clinvk_process_max_fds" + OF_WORKER: steady(1000)}
        ),
    ),
    "ClinvkMemoryLow": Case(
        fires=replicas(
            {
                'clinvk_host_memory_available_bytes{host="h"}': steady(4),
                'clinvk_host_memory_bytes{host="h"}': steady(100),
            }
        ),
        labels={"host": "h"},
        summary="h has 4% of its memory left",
        quiet=replicas(
            {
                'clinvk_host_memory_available_bytes{host="h"}': steady(6),
                'clinvk_host_memory_bytes{host="h"}': steady(100),
            }
        ),
    ),
    "ClinvkDiskLow": Case(
        fires=replicas({'clinvk_host_disk_free_bytes{host="h",role="worker"}': steady(5 * 2**26)}),
        labels={"host": "h", "role": "worker"},
        summary="h has 320MiB of disk left where runs work",
        quiet=replicas({'clinvk_host_disk_free_bytes{host="h",role="worker"}': steady(2e9)}),
    ),
}
SECONDS = {"s": 1, "m": 60, "h": 3600}


def held_s(alert: str) -> int:
    """For how long it must be so before it fires."""
    text = ALERTS[alert].get("for", "0s")
    return int(text[:-1]) * SECONDS[text[-1]]


def judge(folder: Path, alert: str, at_s: int, *given: Series, expected: Sequence[dict] = ()) -> None:
    """Each of the given by itself."""
    asked = {"eval_time": f"{at_s}s", "alertname": alert, "exp_alerts": list(expected)}
    tests = [
        {
            "interval": f"{STEP_S}s",
            "input_series": [{"series": name, "values": values} for name, values in series.items()],
            "alert_rule_test": [asked],
        }
        for series in given
    ]
    made = {"rule_files": [str(RULES)], "evaluation_interval": f"{STEP_S}s", "tests": tests}
    (folder / "test.yml").write_text(yaml.safe_dump(made, width=1000))
    succeeds(system("promtool", "prometheus"), "test", "rules", folder / "test.yml")


def at_s(alert: str) -> int:
    return max(held_s(alert), 900) + 120


@pytest.mark.parametrize("alert", CASES)
def test_an_alert_fires_with_its_labels_and_its_words(alert, tmp_path):
    case, rule = CASES[alert], ALERTS[alert]
    annotations = {**rule["annotations"], "summary": case.summary}
    expected = {"exp_labels": {**case.labels, **rule["labels"]}, "exp_annotations": annotations}

    judge(tmp_path, alert, at_s(alert), case.fires, expected=[expected])


@pytest.mark.parametrize("alert", CASES)
def test_an_alert_is_quiet_where_nothing_is_amiss_and_where_nothing_is_known(alert, tmp_path):
    nothing = [] if alert == "ClinvkNoApi" else [{"other": steady(1)}]  # that nothing is known is what it tells

    judge(tmp_path, alert, at_s(alert), CASES[alert].quiet, *nothing)


@pytest.mark.parametrize("alert", [alert for alert in CASES if held_s(alert)])
def test_an_alert_waits_for_as_long_as_it_says(alert, tmp_path):
    judge(tmp_path, alert, held_s(alert) - STEP_S, CASES[alert].fires)


def test_no_api_is_told_where_all_are_down_and_where_they_vanished_but_not_for_one_that_is_replaced(tmp_path):
    rule = ALERTS["ClinvkNoApi"]
    told = [{"exp_labels": rule["labels"], "exp_annotations": rule["annotations"]}]
    down = {f'up{{job="clinvk",instance="{name}"}}': steady(0) for name in "ab"}
    vanished = {f'up{{job="clinvk",instance="{name}"}}': "1x20 stale" for name in "ab"}
    replaced = {'up{job="clinvk",instance="a"}': "1x20 stale", 'up{job="clinvk",instance="c"}': "_x20 1x700"}

    judge(tmp_path, "ClinvkNoApi", 900, down, vanished, expected=told)
    judge(tmp_path, "ClinvkNoApi", 900, replaced)


def test_no_worker_is_missed_where_one_is_there(tmp_path):
    there = replicas({"clinvk_store_up": steady(1), 'clinvk_worker_instances{host="h",version="1"}': steady(1)})

    judge(tmp_path, "ClinvkNoWorkers", 900, there)


def test_every_alert_has_its_cases():
    assert CASES.keys() == ALERTS.keys()
