"""What the compatible surfaces promise beyond what an SDK can judge: many streams, resumption, tenants, patience."""

import asyncio
import json
import signal
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.system.service import Service, serving, until

WORDS = 24
SAYER = ["/usr/bin/perl", str(Path(__file__).parent / "sayer.pl"), str(WORDS), "250"]


def chat(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "echo", "messages": [{"role": "user", "content": text}], **more}


class Caller:
    """Streams one chat completion, and asks again at another replica where the first one breaks off."""

    def __init__(self, number: int, client: httpx.AsyncClient) -> None:
        self.name = f"caller{number}"
        self.resumes = number % 2 == 1  # with Last-Event-ID; the others take the whole again
        self.client = client
        self.text = ""
        self.last_id = ""
        self.tries = 0
        self.begun = asyncio.Event()
        self.finished = False

    async def ask(self, bases: list[str]) -> None:
        while not self.finished:
            base = bases[self.tries % len(bases)]
            self.tries += 1
            assert self.tries < 20, self.name
            headers = {"idempotency-key": self.name}
            if self.resumes and self.last_id:
                headers["last-event-id"] = self.last_id
            else:
                self.text = ""
            try:
                await self._stream(base, headers)
            except httpx.TransportError:
                await asyncio.sleep(0.05)  # as clients do: not at once

    async def _stream(self, base: str, headers: dict[str, str]) -> None:
        url = base + "/openai/v1/chat/completions"
        async with self.client.stream("POST", url, json=chat(self.name, stream=True), headers=headers) as answer:
            if answer.status_code == 503:
                return
            assert answer.status_code == 200, await answer.aread()
            async for line in answer.aiter_lines():
                if line.startswith("id: "):
                    self.last_id = line[4:]
                elif line == "data: [DONE]":
                    self.finished = True
                elif line.startswith("data: "):
                    data = json.loads(line[6:])
                    assert "error" not in data, data
                    said = data["choices"][0]["delta"].get("content", "")
                    self.text += said
                    if said:
                        self.begun.set()


def test_two_hundred_streams_stay_whole_and_apart_while_a_replica_is_restarted(tmp_path):
    go = tmp_path / "go"  # before it is there, no stream comes to its end, however long the others take to begin
    command = json.dumps([*SAYER, str(go)])
    config = {"CLINVK_BACKENDS__ECHO__COMMAND": command, "CLINVK_WORKER__CONCURRENCY": "100"}
    with serving(workers=2, apis=2, **config) as service:

        async def main() -> list[Caller]:
            bases = [base for _, base in service.apis]
            limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
            async with httpx.AsyncClient(limits=limits, timeout=60) as client:
                callers = [Caller(number, client) for number in range(200)]
                asking = [
                    asyncio.create_task(caller.ask(bases if number % 4 < 2 else bases[::-1]))
                    for number, caller in enumerate(callers)
                ]
                async with asyncio.timeout(90):
                    for caller in callers:
                        await caller.begun.wait()
                    await asyncio.to_thread(restart, service)
                    go.touch()
                    await asyncio.gather(*asking)
            return callers

        callers = asyncio.run(main())

        for caller in callers:
            assert caller.text == "".join(f"{caller.name}-{number} " for number in range(1, WORDS + 1))
        assert sum(caller.tries > 1 for caller in callers) >= 50  # the restart was in mid stream
        runs = httpx.get(service.apis[1][1] + "/api/v1/runs?limit=1000").json()["runs"]
        assert [(one["status"], one["attempt"]) for one in runs] == [("succeeded", 1)] * 200


def restart(service: Service) -> None:
    """The first replica goes down as an operator's restart takes it down, and comes back on another port."""
    proc, _ = service.apis[0]
    proc.send(signal.SIGTERM)
    proc.wait(20)
    service.api()


@pytest.fixture(scope="module")
def service():
    slow = json.dumps(["/usr/bin/perl", str(Path(__file__).parent / "sayer.pl"), "40", "100"])
    keys = {"CLINVK_API_KEYS": "key-of-one,key-of-two"}
    config = {"CLINVK_BACKENDS__ECHO__COMMAND": slow, "CLINVK_WORKER__CONCURRENCY": "2", **keys}
    with serving(CLINVK_SERVER__HANGUP_GRACE_SECS="2", **config) as service:
        yield service


@pytest.fixture
def one(service) -> httpx.Client:
    with httpx.Client(base_url=service.apis[0][1], headers={"x-api-key": "key-of-one"}, timeout=60) as client:
        yield client


@pytest.fixture
def two(service) -> httpx.Client:
    with httpx.Client(
        base_url=service.apis[0][1], headers={"authorization": "Bearer key-of-two"}, timeout=60
    ) as client:
        yield client


def background(client: httpx.Client, text: str = "bg") -> dict[str, Any]:
    answer = client.post("/v1/responses", json={"model": "echo", "input": text, "background": True})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def test_a_response_in_the_background_is_the_queue_in_the_sdks_words(one):
    made = background(one)
    assert made["status"] in ("queued", "in_progress")

    until(lambda: one.get(f"/v1/responses/{made['id']}").json()["status"] == "in_progress")
    cancelled = one.post(f"/v1/responses/{made['id']}/cancel").json()

    assert cancelled["status"] == "cancelled"
    assert one.get(f"/v1/responses/{made['id']}").json()["status"] == "cancelled"
    assert one.delete(f"/v1/responses/{made['id']}").json() == {"id": made["id"], "object": "response", "deleted": True}
    assert one.get(f"/v1/responses/{made['id']}").status_code == 404


def test_a_responses_stream_goes_on_from_any_number(one):
    made = background(one)
    with one.stream("GET", f"/v1/responses/{made['id']}?stream=true") as answer:
        whole = [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: ")]
    numbers = [event["sequence_number"] for event in whole]

    with one.stream("GET", f"/v1/responses/{made['id']}?stream=true&starting_after=5") as answer:
        rest = [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: ")]

    assert numbers == list(range(len(whole)))
    assert whole[-1]["type"] == "response.completed"
    assert rest == whole[6:]


def test_a_background_response_outlives_its_callers_patience(one):
    busy = [background(one)["id"] for _ in range(2)]
    until(lambda: [one.get(f"/v1/responses/{id}").json()["status"] for id in busy] == ["in_progress"] * 2)

    body = {"model": "echo", "input": "late", "background": True}
    made = one.post("/v1/responses", json=body, headers={"x-stainless-read-timeout": "1"}).json()
    until(lambda: one.get(f"/v1/responses/{made['id']}").json()["status"] == "in_progress", 20)

    for id in [*busy, made["id"]]:
        one.post(f"/v1/responses/{id}/cancel")


def test_a_reference_to_an_item_of_a_response_is_that_item(one, two):
    first = one.post("/v1/responses", json={"model": "echo", "input": "hello"}).json()
    item = {"type": "item_reference", "id": first["output"][-1]["id"]}
    turns = [{"role": "user", "content": "hello"}, item, {"role": "user", "content": "more"}]

    second = one.post("/v1/responses", json={"model": "echo", "input": turns})
    strange = two.post("/v1/responses", json={"model": "echo", "input": turns})

    assert second.status_code == 200, second.text
    spec = one.get(f"/api/v1/runs/{second.headers['x-run-id']}")
    assert spec.status_code == 200
    assert strange.status_code == 404
    assert strange.json()["error"]["param"] == "input[1].id"


@pytest.mark.parametrize("model", ["echo/a\r\nX-Evil: 1", "echo/\0", "x" * 300, " "])
def test_a_model_that_is_no_name_is_refused_before_anything_starts(one, model):
    before = one.get("/api/v1/runs?limit=1").json()["total"]

    for path, more in (("/v1/chat/completions", {}), ("/v1/messages", {"max_tokens": 5})):
        answer = one.post(path, json={**chat("x"), "model": model, **more})
        assert answer.status_code == 400, answer.text

    assert one.get("/api/v1/runs?limit=1").json()["total"] == before


def test_a_response_asked_for_beyond_its_end_is_told_its_end(one):
    made = one.post("/v1/responses", json={"model": "echo", "input": "x"}).json()

    with one.stream("GET", f"/v1/responses/{made['id']}?stream=true&starting_after=999") as answer:
        events = [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: ")]

    assert [event["type"] for event in events] == ["response.completed"]


def test_one_tenant_sees_nothing_of_another(one, two):
    made = background(one)
    run_id = made["id"].replace("resp_", "run_")

    seen = [
        two.get(f"/v1/responses/{made['id']}"),
        two.get(f"/v1/responses/{made['id']}?stream=true"),
        two.post(f"/v1/responses/{made['id']}/cancel"),
        two.delete(f"/v1/responses/{made['id']}"),
        two.post("/v1/responses", json={"model": "echo", "input": "x", "previous_response_id": made["id"]}),
        two.post("/v1/chat/completions", json=chat("x", stream=True), headers={"last-event-id": f"{run_id}:1"}),
        two.post(
            "/v1/messages", json={**chat("x", stream=True), "max_tokens": 5}, headers={"last-event-id": f"{run_id}:1"}
        ),
    ]

    assert [answer.status_code for answer in seen] == [404] * len(seen)
    assert one.post(f"/v1/responses/{made['id']}/cancel").json()["status"] == "cancelled"


def test_a_stream_is_taken_up_again_only_in_its_own_dialect(one):
    made = one.post(
        "/api/v1/prompt", json={"backend": "echo", "prompt": "x"}, headers={"prefer": "respond-async"}
    ).json()

    for path in ("/v1/chat/completions", "/v1/messages"):
        answer = one.post(path, json=chat("x", stream=True), headers={"last-event-id": f"{made['id']}:1"})
        assert answer.status_code == 404, answer.text

    one.delete(f"/api/v1/runs/{made['id']}")


def test_the_same_key_of_two_tenants_is_two_runs(one, two):
    answers = [
        client.post(
            "/v1/responses", json={"model": "echo", "input": "x", "background": True}, headers={"idempotency-key": "k"}
        )
        for client in (one, two, one)
    ]
    ids = [answer.json()["id"] for answer in answers]
    for client, id in ((one, ids[0]), (two, ids[1])):
        client.post(f"/v1/responses/{id}/cancel")

    assert ids[0] == ids[2]
    assert ids[0] != ids[1]


def test_another_body_under_the_same_key_is_refused(one):
    first, second = (
        one.post(
            "/v1/responses", json={"model": "echo", "input": text, "background": True}, headers={"idempotency-key": "b"}
        )
        for text in ("x", "y")
    )
    one.post(f"/v1/responses/{first.json()['id']}/cancel")

    assert (first.status_code, second.status_code) == (200, 400)
    assert second.json()["error"]["param"] == "Idempotency-Key"


def test_a_run_that_cannot_start_within_its_callers_patience_is_refused_and_never_started(one, service):
    busy = [background(one)["id"] for _ in range(2)]
    until(lambda: [one.get(f"/v1/responses/{id}").json()["status"] for id in busy] == ["in_progress"] * 2)

    answer = one.post("/v1/chat/completions", json=chat("late"), headers={"x-stainless-timeout": "1"})

    assert answer.status_code == 503, answer.text
    assert answer.headers["x-should-retry"] == "true"
    assert answer.headers["retry-after"]
    record = one.get(f"/api/v1/runs/{answer.headers['x-run-id']}").json()
    assert (record["status"], record.get("attempt", 0)) == ("failed", 0)
    for id in busy:
        one.post(f"/v1/responses/{id}/cancel")


def test_a_retry_joins_its_run_and_a_fresh_call_is_a_fresh_run(one, service):
    def ask(tries: int, timeout: float) -> httpx.Response | None:
        try:
            headers = {"x-stainless-retry-count": str(tries)}
            return one.post("/v1/chat/completions", json=chat("again"), headers=headers, timeout=timeout)
        except httpx.ReadTimeout:
            return None

    before = len(one.get("/api/v1/runs?limit=1000").json()["runs"])

    assert ask(0, 1.0) is None
    with service.redis.client() as client:  # SDKs pause before they ask again; the hang-up has been seen by then
        until(lambda: client.zcard("clinvk:unfollowed"))
    answer = ask(1, 30)

    assert answer is not None
    assert answer.status_code == 200
    assert len(one.get("/api/v1/runs?limit=1000").json()["runs"]) == before + 1
    assert ask(0, 30).headers["x-run-id"] != answer.headers["x-run-id"]


def test_a_client_that_hangs_up_is_waited_for_and_then_its_run_is_cancelled(one, service):
    with one.stream("POST", "/v1/messages", json={**chat("bye", stream=True), "max_tokens": 9}) as answer:
        run_id = answer.headers["x-run-id"]
        for line in answer.iter_lines():
            if "content_block_delta" in line:
                break

    assert one.get(f"/api/v1/runs/{run_id}").json()["status"] == "running"
    until(lambda: one.get(f"/api/v1/runs/{run_id}").json()["status"] == "cancelled", 10)


def test_nobody_without_a_key_gets_in_and_each_surface_says_so_in_its_words(service):
    base = service.apis[0][1]

    openai = httpx.post(base + "/v1/chat/completions", json=chat("x"))
    anthropic = httpx.post(base + "/v1/messages", json=chat("x"), headers={"authorization": "Bearer wrong"})

    assert (openai.status_code, openai.json()["error"]["type"]) == (401, "authentication_error")
    assert (anthropic.status_code, anthropic.json()["type"]) == (401, "error")
    assert anthropic.json()["error"]["type"] == "authentication_error"
