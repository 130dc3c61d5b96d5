"""The dashboard and the alert rules: each metric and label that they name is in a real scrape, each expression parses."""

import asyncio
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from shared.host import BackendState, Instance, Readiness
from shared.redis import Redis
from shared.store import Limits, create_scripts
from shared.store.hosts import Hosts
from shared.tally import Tally
from shared.warm import WarmState
from tests.system.service import Service, prompt, serving, stream

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy" / "prometheus" / "alerts.yml"
DASHBOARD = ROOT / "deploy" / "grafana" / "clinvk.json"
PROMETHEUS_OWN = {"up"}


def alerts() -> list[dict]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def panels() -> list[dict]:
    return [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row"]


def expressions() -> list[str]:
    found = [rule["expr"] for rule in alerts()]
    return found + [target["expr"] for panel in panels() for target in panel["targets"]]


def kebab(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "-", name).lower()


@pytest.fixture(scope="module")
def scrape() -> str:
    with serving(CLINVK_SERVER__METRICS_ENABLED="true") as service:
        base = service.apis[0][1]
        prompt(base, "hello")
        prompt(base, "hello", "--exit-code=1")
        stream(base, "a b c", "--delay-ms=30").rest()
        happened(service)
        return httpx.get(base + "/metrics").text


def happened(service: Service) -> None:
    """What a healthy fleet does not show within seconds: a run's tokens and cost, what sweeps mend, gaps, warm CLIs."""
    warm = WarmState(kept=1, running=1, memory_bytes=9, hits=3, starts=2, misses={"workdir": 1}, ends={"crashed": 1})
    state = BackendState(name="codex", readiness=Readiness.READY, slots=1, warm=warm)
    instance = Instance(id="ins_warm", host="h", pid=7, version="1", started_at=0, slots=1, backends=(state,))

    async def tell() -> None:
        redis = Redis(service.redis.url)
        tally = Tally(redis)
        for name in ("tokens|claude|input", "cost_microusd|claude", "mended|hint", "gap|missed"):
            tally.add(name)
        await tally.flush()
        await Hosts(create_scripts(redis, Limits())).announce(instance, {}, life_s=60)
        await redis.aclose()

    asyncio.run(tell())


@pytest.mark.redis
@pytest.mark.processes
def test_each_metric_and_each_label_that_is_named_is_in_a_scrape(scrape):
    families = list(text_string_to_metric_families(scrape))
    labels = {sample.name: set(sample.labels) for found in families for sample in found.samples}

    missing, strange = set(), set()
    for expression in expressions():
        named = re.findall(r"\b(clinvk_[a-z0-9_]+)\b(?:\{([^}]*)\})?", expression)
        missing |= {name for name, _ in named} - labels.keys()
        for name, selector in named:
            asked = set(re.findall(r"(\w+)\s*[=!]~?", selector))
            strange |= {(word, expression) for word in asked - labels.get(name, set())}
        known = set().union(*(labels.get(name, set()) for name, _ in named))
        by = {word for by in re.findall(r"\bby \(([^)]*)\)", expression) for word in by.replace(" ", "").split(",")}
        strange |= {(word, expression) for word in by - known if named}

    assert [found.name for found in families if not found.samples] == [], "nothing is known of its labels"
    assert missing == set()
    assert strange == set()


@pytest.mark.redis
@pytest.mark.processes
def test_the_page_has_each_metric_with_its_labels_and_no_other(scrape):
    families = list(text_string_to_metric_families(scrape))
    there = {found.name + "_total" if found.type == "counter" else found.name: found for found in families}
    page = (ROOT / "docs" / "observability.md").read_text()
    rows = [line.split("|")[1:3] for line in page.splitlines() if line.startswith("| `clinvk_")]
    told = {name: labels for names, labels in rows for name in re.findall(r"`(\w+)`", names)}

    assert told.keys() == there.keys()
    for name, labels in told.items():
        for sample in there[name].samples:
            assert set(sample.labels) - {"le"} == set(labels.replace(" ", "").split(",")) - {""}, name


def test_nothing_else_is_named_and_no_metric_twice_in_a_name():
    words = {word for e in expressions() for word in re.findall(r"\b([a-z_]+)(?=[{\[])", e)}

    assert all(word.startswith("clinvk_") or word in PROMETHEUS_OWN for word in words), words


def test_each_alert_leads_to_its_place_in_the_runbook():
    for rule in alerts():
        anchor = kebab(rule["alert"])
        assert rule["annotations"]["runbook_url"] == f"docs/runbook.md#{anchor}"
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"]["summary"]
    assert len({rule["alert"] for rule in alerts()}) == len(alerts())


def test_the_runbook_says_of_each_alert_what_it_means_and_what_to_do():
    runbook = ROOT / "docs" / "runbook.md"
    if not runbook.exists():
        pytest.skip("docs/runbook.md is not written yet")
    heads = {line.lstrip("# ").strip().strip("`") for line in runbook.read_text().splitlines() if line.startswith("#")}

    assert {kebab(rule["alert"]) for rule in alerts()} <= {kebab(head) for head in heads} | heads


def test_the_dashboard_has_no_two_panels_in_one_place_and_each_has_a_title():
    ids = [panel["id"] for panel in panels()]
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels()]

    assert len(set(ids)) == len(ids)
    assert len(set(places)) == len(places)
    assert all(panel["title"] and panel["targets"] for panel in panels())


def test_promtool_takes_the_rules_and_every_expression_of_the_dashboard(tmp_path):
    if shutil.which("promtool") is None:
        assert not os.environ.get("CLINVK_REQUIRE"), "promtool is missing, and CLINVK_REQUIRE is set"
        pytest.skip("promtool is not installed (Debian's package `prometheus` has it)")
    plain = [e.replace("$__rate_interval", "5m").replace("$backend", ".*") for e in expressions()]
    made = {"groups": [{"name": "g", "rules": [{"record": f"r{n}", "expr": e} for n, e in enumerate(plain)]}]}
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(made))

    for path in (RULES, tmp_path / "rules.yml"):
        done = subprocess.run(
            ["promtool", "check", "rules", str(path)], capture_output=True, text=True, timeout=30, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.redis
@pytest.mark.processes
def test_promtool_takes_the_scrape(scrape):
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed (Debian's package `prometheus` has it)")
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=scrape, capture_output=True, text=True, timeout=30, check=False
    )

    assert done.returncode == 0, done.stdout + done.stderr
