"""Every route, asked with another tenant's ids: it is as if they did not exist. A route without a row here fails."""

import contextlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.app import create_app
from api.keys import Keyring
from shared.config_sources import load
from tests.system.service import serving, until

CANARY = "canary-of-alice"
SAID = "what both have said"
KEYS = [{"key": f"k-{name}", "name": name} for name in ("alice", "bob")]
KEYS.append({"key": "k-boss", "name": "ops", "role": "admin"})
ASYNC = {"prefer": "respond-async"}


class World:
    """What alice has, and three callers to ask for it."""

    def __init__(self, base: str, stack: contextlib.ExitStack) -> None:
        self.callers = {
            name: stack.enter_context(httpx.Client(base_url=base, headers={"x-api-key": f"k-{name}"}, timeout=60))
            for name in ("alice", "bob", "boss")
        }
        until(lambda: self.ask("alice", "GET", "/api/v1/backends").json()["backends"])
        said = self.ask("alice", "POST", "/api/v1/prompt", json={"backend": "echo", "prompt": CANARY}).json()
        self.run, self.session = said["run_id"], said["session_id"]
        self.hanging = self.hang()
        self.flow = self.ask("alice", "POST", "/api/v1/parallel", json=self.tasks()).json()["flow_id"]
        self.response = self.ask("alice", "POST", "/openai/v1/responses", json=self.input()).json()["id"]
        self.ids = {"run_id": self.run, "flow_id": self.flow, "session_id": self.session}
        self.ids |= {"response_id": self.response, "host": "host0", "name": "echo"}

    def ask(self, who: str, method: str, path: str, **more: Any) -> httpx.Response:
        return self.callers[who].request(method, path, **more)

    def hang(self, who: str = "alice") -> str:
        body = {"backend": "echo", "prompt": CANARY, "extra": ["--hang"]}
        return str(self.ask(who, "POST", "/api/v1/prompt", json=body, headers=ASYNC).json()["id"])

    def path(self, template: str) -> str:
        return template.format(**self.ids)

    @staticmethod
    def tasks() -> dict[str, Any]:
        return {"tasks": [{"backend": "echo", "prompt": CANARY}]}

    @staticmethod
    def input(**more: Any) -> dict[str, Any]:
        return {"model": "echo", "input": CANARY, **more}


def is_clean(world: World, answer: httpx.Response) -> None:
    for secret in (CANARY, world.run, world.flow, world.session, world.response, world.hanging):
        assert secret not in answer.text


def nowhere(world: World, method: str, template: str) -> None:
    """As for an id that was never given."""
    body = {"json": {"prompt": "x"}} if template.endswith("resume") else {}
    foreign = world.ask("bob", method, world.path(template), **body)
    name = next(name for name in world.ids if "{" + name + "}" in template)
    invented = "".join(reversed(world.ids[name][-8:])).join((world.ids[name][:-8], ""))
    unknown = world.ask("bob", method, template.format(**{**world.ids, name: invented}), **body)

    assert (foreign.status_code, unknown.status_code) == (404, 404), foreign.text
    one, other = foreign.json(), unknown.json()
    for told in (one, other):
        told.pop("request_id")
    assert json.dumps(one).replace(world.ids[name], "ID") == json.dumps(other).replace(invented, "ID")
    assert CANARY not in foreign.text


def clean(world: World, method: str, template: str) -> None:
    """It shows nothing that is alice's, nor takes her name for bob's."""
    answer = world.ask("bob", method, world.path(template))
    named = world.ask("bob", method, world.path(template), params={"tenant": "alice"})

    assert answer.status_code in (200, 503)
    is_clean(world, answer)
    is_clean(world, named)


def refuses_others(world: World, method: str, template: str) -> None:
    clean(world, method, template)
    for tenant in ("alice", "*"):
        assert world.ask("bob", method, template, params={"tenant": tenant}).status_code == 403


def admins_only(world: World, method: str, template: str) -> None:
    answer = world.ask("bob", method, world.path(template))

    assert answer.status_code == 403
    is_clean(world, answer)


def own_key(body: Callable[[], dict[str, Any]], id_of: Callable[[httpx.Response], str]) -> Callable[..., None]:
    """An idempotency key of alice's means nothing in bob's hands, whatever body comes with it."""

    def row(world: World, method: str, template: str) -> None:
        key = {"idempotency-key": "the same key " + template.replace("/", "-")}
        hers = world.ask("alice", method, template, json=body(), headers=key)
        again = world.ask("alice", method, template, json=body(), headers=key)
        his = world.ask("bob", method, template, json=body(), headers=key)
        other = world.ask("bob", method, template, json={**body(), "no": 1}, headers=key)

        assert hers.status_code == again.status_code == his.status_code == 200, his.text
        assert id_of(hers) == id_of(again) != id_of(his)
        assert other.status_code == 400, "his own key, with another body"

    return row


def run_of(answer: httpx.Response) -> str:
    return answer.headers["x-run-id"]


def flow_of(answer: httpx.Response) -> str:
    return str(answer.json()["flow_id"])


def native() -> dict[str, Any]:
    return {"backend": "echo", "prompt": SAID}


def chat() -> dict[str, Any]:
    return {"model": "echo", "messages": [{"role": "user", "content": SAID}]}


def anthropic() -> dict[str, Any]:
    return {**chat(), "max_tokens": 9}


def streams(body: Callable[[], dict[str, Any]]) -> Callable[..., None]:
    """As `own_key`; and the position in her stream is none in his."""

    def row(world: World, method: str, template: str) -> None:
        own_key(body, run_of)(world, method, template)
        key = {"idempotency-key": "stream " + template.replace("/", "-")}
        run_id = run_of(world.ask("alice", method, template, json={**body(), "stream": True}, headers=key))
        at = {"last-event-id": f"{run_id}:1"}
        hers = world.ask("alice", method, template, json={**body(), "stream": True}, headers=at)
        his = world.ask("bob", method, template, json={**body(), "stream": True}, headers=at)

        assert (hers.status_code, his.status_code) == (200, 404)
        assert CANARY not in his.text

    return row


def responses(world: World, method: str, template: str) -> None:
    own_key(lambda: {"model": "echo", "input": SAID}, run_of)(world, method, template)
    item = [
        {"type": "item_reference", "id": "msg_" + world.response.removeprefix("resp_")},
        {"role": "user", "content": "x"},
    ]
    for who, status in (("alice", 200), ("bob", 404)):
        before = world.ask(who, method, template, json=world.input(previous_response_id=world.response))
        referred = world.ask(who, method, template, json={**world.input(), "input": item})
        assert (before.status_code, referred.status_code) == (status, status), referred.text


def sessions(world: World, method: str, template: str) -> None:
    nowhere(world, method, template)
    prefix = template.format(session_id=world.session[:12])
    body = {"json": {"prompt": "x"}} if template.endswith("resume") else {}
    assert world.ask("bob", method, prefix, **body).status_code == 404


def follows(world: World, method: str, template: str) -> None:
    nowhere(world, method, template)
    for position in ({"params": {"after": 1}}, {"headers": {"last-event-id": "1"}}):
        assert world.ask("bob", method, world.path(template), **position).status_code == 404


def still_runs(world: World, method: str, template: str) -> None:
    """Nor is what is under way ended by it."""
    nowhere(world, method, template)
    for query in ("", "?erase=true"):
        assert world.ask("bob", method, template.format(run_id=world.hanging) + query).status_code == 404
        assert world.ask("bob", method, world.path(template) + query).status_code == 404
    assert world.ask("alice", "GET", f"/api/v1/runs/{world.hanging}").json()["status"] == "running"
    assert world.ask("alice", "GET", f"/api/v1/runs/{world.run}").status_code == 200


V1, OPENAI, ANTHROPIC = "/api/v1", "/openai/v1", "/anthropic/v1"
ROWS: dict[tuple[str, str], Callable[[World, str, str], None]] = {
    ("POST", V1 + "/prompt"): own_key(native, run_of),
    ("GET", V1 + "/runs"): refuses_others,
    ("GET", V1 + "/runs/{run_id}"): nowhere,
    ("DELETE", V1 + "/runs/{run_id}"): still_runs,
    ("GET", V1 + "/runs/{run_id}/events"): follows,
    ("GET", V1 + "/backends"): clean,
    ("POST", V1 + "/parallel"): own_key(lambda: {"tasks": [native()]}, flow_of),
    ("POST", V1 + "/chain"): own_key(lambda: {"steps": [native()]}, flow_of),
    ("POST", V1 + "/compare"): own_key(lambda: {"prompt": SAID, "backends": ["echo"]}, flow_of),
    ("GET", V1 + "/flows"): refuses_others,
    ("GET", V1 + "/flows/{flow_id}"): nowhere,
    ("DELETE", V1 + "/flows/{flow_id}"): nowhere,
    ("GET", V1 + "/flows/{flow_id}/events"): follows,
    ("GET", V1 + "/sessions"): refuses_others,
    ("GET", V1 + "/sessions/{session_id}"): sessions,
    ("DELETE", V1 + "/sessions/{session_id}"): sessions,
    ("POST", V1 + "/sessions/{session_id}/resume"): sessions,
    ("GET", V1 + "/usage"): refuses_others,
    ("GET", V1 + "/audit"): admins_only,
    ("GET", V1 + "/workers"): admins_only,
    ("POST", V1 + "/workers/{host}/drain"): admins_only,
    ("POST", V1 + "/workers/{host}/undrain"): admins_only,
    ("POST", OPENAI + "/chat/completions"): streams(chat),
    ("GET", OPENAI + "/models"): clean,
    ("GET", OPENAI + "/models/{name}"): clean,
    ("POST", OPENAI + "/responses"): responses,
    ("GET", OPENAI + "/responses/{response_id}"): nowhere,
    ("DELETE", OPENAI + "/responses/{response_id}"): nowhere,
    ("POST", OPENAI + "/responses/{response_id}/cancel"): nowhere,
    ("POST", ANTHROPIC + "/messages"): streams(anthropic),
    ("POST", ANTHROPIC + "/messages/count_tokens"): lambda world, method, path: is_clean(
        world, world.ask("bob", method, path, json={**anthropic(), "messages": [{"role": "user", "content": "x"}]})
    ),
    ("GET", ANTHROPIC + "/models"): clean,
    ("GET", ANTHROPIC + "/models/{name}"): clean,
    ("GET", "/health"): clean,
    ("GET", V1 + "/health"): clean,
    ("GET", "/livez"): clean,
    ("GET", "/readyz"): clean,
    ("GET", "/metrics"): admins_only,
    ("GET", "/openapi.json"): clean,
    ("GET", "/docs"): clean,
    ("GET", "/docs/{name}"): lambda world, method, _: is_clean(world, world.ask("bob", method, "/docs/x")),
}


def offered() -> set[tuple[str, str]]:
    """From the application's own table of routes."""
    config = load(None, {"HOME": "/nonexistent", "CLINVK_REDIS_URL": "redis://nowhere"}).config
    litestar = create_app(config, Keyring([]), Path("/nonexistent"))._litestar
    return {(method, one.path_format) for one in litestar.routes for method in one.methods} - {  # type: ignore[union-attr]  # all are HTTP routes
        (method, one.path_format) for one in litestar.routes for method in ("OPTIONS", "HEAD")
    }


@pytest.mark.filterwarnings(
    "ignore:.*deprecated inferred style"
)  # how Litestar would rather be told of path parameters
def test_every_route_has_a_row_here_and_no_row_is_left_over():
    assert offered() == set(ROWS)


@pytest.fixture(scope="module")
def world():
    with serving(
        CLINVK_SERVER__API_KEYS=json.dumps(KEYS), CLINVK_SERVER__METRICS_ENABLED="true", CLINVK_WORKER__CONCURRENCY="20"
    ) as service:
        with contextlib.ExitStack() as stack:
            yield World(service.apis[0][1], stack)


@pytest.mark.parametrize(("method", "template"), ROWS, ids=lambda part: part)
def test_another_tenants_ids_mean_nothing(world, method, template):
    ROWS[method, template](world, method, template)


# -- an admin


def test_an_admin_sees_reads_and_follows_all_tenants_runs(world):
    own = world.ask("boss", "GET", "/api/v1/runs").json()
    hers = world.ask("boss", "GET", "/api/v1/runs", params={"tenant": "alice"}).json()
    everybodys = world.ask("boss", "GET", "/api/v1/runs", params={"tenant": "*"}).json()

    assert own["total"] == 0
    assert {one["tenant"] for one in hers["runs"]} == {"alice"}
    assert {"alice", "bob"} <= {one["tenant"] for one in everybodys["runs"]}
    assert everybodys["total"] >= hers["total"]
    times = [one["created_at"] for one in everybodys["runs"]]
    assert times == sorted(times, reverse=True)
    assert world.ask("boss", "GET", f"/api/v1/runs/{world.run}").json()["tenant"] == "alice"
    assert CANARY in world.ask("boss", "GET", f"/api/v1/runs/{world.run}/events").text
    assert CANARY in world.ask("boss", "GET", f"/openai/v1/responses/{world.response}").text
    assert "tenant" not in world.ask("alice", "GET", f"/api/v1/runs/{world.run}").json()


def test_an_admin_sees_all_tenants_flows_and_sessions_but_goes_on_with_none(world):
    assert world.ask("boss", "GET", f"/api/v1/flows/{world.flow}").status_code == 200
    assert CANARY in world.ask("boss", "GET", f"/api/v1/flows/{world.flow}/events").text
    assert world.ask("boss", "GET", f"/api/v1/sessions/{world.session}").json()["tenant"] == "alice"
    for what in ("flows", "sessions"):
        listed = world.ask("boss", "GET", f"/api/v1/{what}", params={"tenant": "*"}).json()[what]
        assert "alice" in {one["tenant"] for one in listed}
    resumed = world.ask("boss", "POST", f"/api/v1/sessions/{world.session}/resume", json={"prompt": "x"})
    assert resumed.status_code == 403


@pytest.mark.parametrize("what", ["runs", "flows", "sessions"])
def test_an_admin_pages_through_all_tenants_without_an_end(world, what):
    def page(**params: Any) -> dict[str, Any]:
        answer = world.ask("boss", "GET", f"/api/v1/{what}", params={"tenant": "*", **params})
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    whole = page(limit=100)
    single = [page(limit=1, offset=offset)[what] for offset in range(min(whole["total"], 5))]

    assert whole["total"] >= 1
    assert [one for (one,) in single] == whole[what][:5]
    assert page(offset=5000)[what] == []


@pytest.mark.parametrize("what", ["runs", "flows", "sessions"])
def test_a_state_that_is_none_is_refused_with_those_that_are(world, what):
    answer = world.ask("alice", "GET", f"/api/v1/{what}", params={"status": "bogus"})

    assert answer.status_code == 400
    assert "status must be one of" in answer.json()["detail"]
    assert "cancelled" in answer.json()["detail"]


@pytest.mark.parametrize(("what", "state"), [("runs", "running"), ("flows", "succeeded"), ("runs", "failed")])
def test_those_in_one_state_are_listed_and_counted(world, what, state):
    every = world.ask("boss", "GET", f"/api/v1/{what}", params={"tenant": "*", "limit": 100}).json()[what]
    picked = world.ask("boss", "GET", f"/api/v1/{what}", params={"tenant": "*", "limit": 100, "status": state}).json()

    assert [one["status"] for one in picked[what]] == [state] * picked["total"]
    assert len(every) == 100 or len(picked[what]) == len([one for one in every if one["status"] == state])


def test_what_is_cancelled_drained_deleted_and_resumed_stands_in_the_audit_log(world):
    mine = {"x-request-id": f"req-audit-{time.time_ns()}"}
    run = world.hang()
    session = world.ask("alice", "POST", "/api/v1/prompt", json=native()).json()["session_id"]
    world.ask("alice", "POST", f"/api/v1/sessions/{session}/resume", json={"prompt": "x"}, headers=mine)
    world.ask("boss", "DELETE", f"/api/v1/runs/{run}", headers=mine)
    world.ask("alice", "DELETE", f"/api/v1/sessions/{session}", headers=mine)
    world.ask("boss", "POST", "/api/v1/workers/host0/drain", headers=mine)
    world.ask("boss", "POST", "/api/v1/workers/host0/undrain", headers=mine)
    world.ask("bob", "DELETE", f"/api/v1/runs/{world.run}", headers=mine)

    page = world.ask("boss", "GET", "/api/v1/audit", params={"limit": 1000}).json()

    found = [one for one in page["entries"] if one["request_id"] == mine["x-request-id"]][::-1]
    assert [(one["action"], one["target"], one["tenant"], one["owner"]) for one in found] == [
        ("session.resume", session, "alice", "alice"),
        ("run.cancel", run, "ops", "alice"),
        ("session.delete", session, "alice", "alice"),
        ("host.drain", "host0", "ops", ""),
        ("host.undrain", "host0", "ops", ""),
    ]
    assert found[1]["address"] == "127.0.0.1"
    assert found[1]["key"].startswith("key-")
    assert page["next"] is None
    first = world.ask("boss", "GET", "/api/v1/audit", params={"limit": 1, "action": "run.cancel"}).json()
    assert [one["action"] for one in first["entries"]] == ["run.cancel"]
    older = world.ask("boss", "GET", "/api/v1/audit", params={"before": first["next"], "limit": 1000}).json()
    assert first["entries"][0]["id"] not in {one["id"] for one in older["entries"]}


def test_usage_is_the_callers_own_and_an_admins_is_everybodys(world):
    hers = world.ask("alice", "GET", "/api/v1/usage").json()
    everybodys = world.ask("boss", "GET", "/api/v1/usage", params={"by": "tenant"}).json()
    models = world.ask("alice", "GET", "/api/v1/usage", params={"by": "backend,model", "backend": "echo"}).json()

    assert {row["tenant"] for row in hers["usage"]} == {"alice"}
    assert {row["key"][:4] for row in hers["usage"]} == {"key-"}
    assert hers["total"]["runs"]["succeeded"] > 3
    assert hers["total"]["token_usage"]["input_tokens"] > 0
    assert hers["total"]["cost_usd"] is None
    assert {"alice", "bob"} <= {row["tenant"] for row in everybodys["usage"]}
    assert "echo-1" in {row["model"] for row in models["usage"]}
    for wrong in ({"from": "x"}, {"by": "hour"}, {"from": "2026-02-01", "to": "2026-01-01"}, {"to": "0001-01-01"}):
        assert world.ask("alice", "GET", "/api/v1/usage", params=wrong).status_code == 400
