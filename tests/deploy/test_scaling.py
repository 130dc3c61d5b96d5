"""What workers are scaled by arrives: a real Prometheus that is told what deploy/ tells it, in front of a service with keys."""

import contextlib
import hashlib
import json
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.deploy.found import DEPLOY, system
from tests.deploy.test_files import kinds, succeeds
from tests.system.service import Service, free_port, serving, until

MONITORING = DEPLOY / "kubernetes" / "monitoring"
KEYS = {"caller": "key-of-a-caller", "operator": "key-of-the-operator"}


def scaled_by() -> dict[str, dict]:
    """The metrics of the autoscaler by name, with their targets."""
    (scaler,) = kinds("HorizontalPodAutoscaler").values()
    return {one["external"]["metric"]["name"]: one["external"]["target"] for one in scaler["spec"]["metrics"]}


def adapter() -> dict[str, dict]:
    rules = yaml.safe_load((MONITORING / "adapter-values.yaml").read_text())["rules"]["external"]
    return {rule["name"]["as"]: rule for rule in rules}


class Prometheus:
    def __init__(self, base: str) -> None:
        self._base = base

    def ask(self, expression: str) -> float | None:
        found = self._get("query", query=expression)["result"]
        return float(found[0]["value"][1]) if found else None

    def series(self, selector: str) -> list[dict]:
        found = self._get("series", **{"match[]": selector})
        assert isinstance(found, list)
        return found

    def external(self, name: str) -> float | None:
        """The metric as the adapter gives it to Kubernetes."""
        rule = adapter()[name]
        series = {one["__name__"] for one in self.series(rule["seriesQuery"])}
        assert len(series) <= 1
        return self.ask(rule["metricsQuery"].replace("<<.Series>>", series.pop())) if series else None

    def _get(self, what: str, **params: str) -> Any:
        answer = httpx.get(f"{self._base}/api/v1/{what}", params=params).json()
        assert answer["status"] == "success", answer
        return answer["data"]


@contextlib.contextmanager
def prometheus(job: dict, folder: Path) -> Iterator[Prometheus]:
    base = f"127.0.0.1:{free_port()}"
    config = {"global": {"scrape_interval": "1s", "scrape_timeout": "1s"}, "scrape_configs": [job]}
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    words = [f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [system("prometheus", "prometheus"), *words, f"--web.listen-address={base}"], stdout=log, stderr=log
        )

    def up() -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"http://{base}/-/ready").status_code == 200
        return False

    try:
        until(lambda: up() or process.poll() is not None, 30)
        assert process.poll() is None, (folder / "log").read_text()
        yield Prometheus(f"http://{base}")
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


def job_for(service: Service, folder: Path, key: str) -> dict:
    """The entry of scrape.yml, but for the address and the place of the key."""
    (job,) = yaml.safe_load((MONITORING / "scrape.yml").read_text())
    assert (
        Path(job["authorization"]["credentials_file"]).name in kinds_in("servicemonitor.yaml")["Secret"]["stringData"]
    )
    (folder / "key").write_text(key)
    job["authorization"]["credentials_file"] = str(folder / "key")
    job["static_configs"][0]["targets"] = [service.apis[0][1].removeprefix("http://")]
    return job


def kinds_in(name: str) -> dict[str, dict]:
    return {one["kind"]: one for one in yaml.safe_load_all((MONITORING / name).read_text())}


@pytest.fixture(scope="module")
def keyed() -> Iterator[Service]:
    keys = [
        {"key": "sha256:" + hashlib.sha256(KEYS["caller"].encode()).hexdigest(), "name": "a"},
        {"key": KEYS["operator"], "name": "operator", "role": "admin"},
        {"key": "narrow", "name": "narrow", "max_concurrent_runs": 1},
    ]
    config = {"METRICS_ENABLED": "true", "RATE_LIMIT_ENABLED": "true", "API_KEYS": json.dumps(keys)}
    env = {f"CLINVK_SERVER__{name}": value for name, value in config.items()}
    with serving(workers=0, **env) as service:
        service.worker("--concurrency", "2")
        yield service


@pytest.mark.processes
def test_both_metrics_arrive_and_tell_a_full_fleet_from_a_tenant_at_its_limit(keyed, tmp_path):
    base = keyed.apis[0][1]

    def ask(key: str, count: int) -> None:
        body = {"backend": "echo", "prompt": "stay", "extra": ["--hang"]}
        headers = {"x-api-key": key, "prefer": "respond-async"}
        for _ in range(count):
            assert httpx.post(base + "/api/v1/prompt", json=body, headers=headers).status_code == 202

    with prometheus(job_for(keyed, tmp_path, KEYS["operator"]), tmp_path) as seen:
        ask("narrow", 4)
        until(lambda: seen.external("clinvk_worker_running") == 1, 20)
        until(lambda: (seen.ask('max(clinvk_queue_oldest_seconds{backend="echo"})') or 0) > 2, 20)
        assert seen.external("clinvk_slots_wanted_seconds") == 0, "one slot is free, and its key's window is full"

        ask(KEYS["caller"], 3)

        until(lambda: (seen.external("clinvk_slots_wanted_seconds") or 0) > 1, 20)
        until(lambda: seen.external("clinvk_worker_running") == 2, 20)
        assert seen.ask('up{job="clinvk"}') == 1, "as alerts.yml calls it"


@pytest.mark.processes
@pytest.mark.parametrize("key", [KEYS["caller"], "no such key"])
def test_a_key_that_is_no_admins_brings_no_metric(keyed, tmp_path, key):
    with prometheus(job_for(keyed, tmp_path, key), tmp_path) as seen:
        until(lambda: seen.ask('up{job="clinvk"}') == 0, 20)

        assert [seen.external(name) for name in scaled_by()] == [None, None]


def test_workers_are_scaled_by_what_the_adapter_is_told_of():
    (scaler,) = kinds("HorizontalPodAutoscaler").values()
    target = scaler["spec"]["scaleTargetRef"]
    (container,) = kinds(target["kind"])[target["name"]]["spec"]["template"]["spec"]["containers"]
    (slots,) = (one["value"] for one in container["env"] if one["name"] == "CLINVK_WORKER__CONCURRENCY")

    assert scaled_by().keys() == adapter().keys()
    assert "clinvk_slots_wanted_seconds" in scaled_by()
    assert 0.5 <= int(scaled_by()["clinvk_worker_running"]["averageValue"]) / int(slots) < 1


def test_the_service_monitor_finds_the_port_the_path_and_the_key():
    found = kinds_in("servicemonitor.yaml")
    (endpoint,) = found["ServiceMonitor"]["spec"]["endpoints"]
    service = kinds("Service")["clinvk-api"]
    credentials = endpoint["authorization"]["credentials"]

    assert found["ServiceMonitor"]["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert endpoint["port"] in [port["name"] for port in service["spec"]["ports"]]
    assert credentials["name"] == found["Secret"]["metadata"]["name"]
    assert credentials["key"] in found["Secret"]["stringData"]
    assert found["Secret"]["metadata"]["namespace"] == found["ServiceMonitor"]["metadata"]["namespace"]
    assert {"targetLabel": "job", "replacement": "clinvk"} in endpoint["relabelings"]


def test_prometheus_takes_the_entry_for_its_configuration(tmp_path):
    jobs = yaml.safe_load((MONITORING / "scrape.yml").read_text())
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump({"scrape_configs": jobs}))

    succeeds(system("promtool", "prometheus"), "check", "config", "--syntax-only", tmp_path / "prometheus.yml")

    ports = {str(port["port"]) for port in kinds("Service")["clinvk-api"]["spec"]["ports"]}
    (target,) = jobs[0]["static_configs"][0]["targets"]
    assert re.fullmatch(rf"clinvk-api\.clinvk\.svc:({'|'.join(ports)})", target)


def test_a_host_that_is_scaled_away_keeps_what_its_sessions_need():
    worker = kinds("StatefulSet")["clinvk-worker"]["spec"]

    assert worker["persistentVolumeClaimRetentionPolicy"]["whenScaled"] == "Retain"
    page = (DEPLOY.parent / "docs" / "deployment.md").read_text()
    assert "session_host_unavailable" in page
    assert "selectPolicy: Disabled" in page
