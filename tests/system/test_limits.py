"""Rate limits over two replicas, as callers see them."""

import math
import time
from concurrent.futures import ThreadPoolExecutor

import httpx

from tests.system.service import serving, until


def test_two_replicas_hold_one_limit_and_its_delays_are_true_when_all_obey():
    config = {
        "CLINVK_SERVER__RATE_LIMIT_ENABLED": "true",
        "CLINVK_SERVER__RATE_LIMIT_RPS": "10",
        "CLINVK_SERVER__RATE_LIMIT_BURST": "20",
        "CLINVK_API_KEYS": "k",
    }
    with serving(workers=0, apis=2, **config) as service:
        with httpx.Client(headers={"x-api-key": "k"}, timeout=30) as client, ThreadPoolExecutor(60) as pool:
            begun = time.monotonic()
            urls = [service.apis[number % 2][1] + "/api/v1/backends" for number in range(60)]
            answers = list(pool.map(lambda url: (client.get(url), url, time.monotonic()), urls))
            took = time.monotonic() - begun
            passed = [one for one, _, _ in answers if one.status_code == 200]
            refused = [one for one, _, _ in answers if one.status_code == 429]

            assert len(passed) + len(refused) == 60
            assert 20 <= len(passed) <= 20 + math.ceil(took * 10)
            one = refused[-1]
            assert one.json()["error"]["code"] == "rate_limit_exceeded"
            assert one.headers["x-should-retry"] == "true"
            assert one.headers["ratelimit-limit"] == one.headers["x-ratelimit-limit"] == "20"
            assert {int(one.headers["retry-after"]) for one in refused} <= {1, 2, 3, 4}
            assert all(0 < int(one.headers["ratelimit-reset"]) <= 2 for one in refused)
            due = sorted(
                (at + int(one.headers["retry-after"]), url) for one, url, at in answers if one.status_code == 429
            )
            again = []
            for at, url in due:
                until(lambda at=at: time.monotonic() >= at)
                again.append(pool.submit(client.get, url))
            assert [one.result().status_code for one in again] == [200] * len(refused)
            assert all(httpx.get(service.apis[0][1] + "/health").status_code == 200 for _ in range(30))


def test_whoever_guesses_at_keys_is_limited_by_address_and_callers_with_a_key_are_not_held_to_it():
    config = {
        "CLINVK_SERVER__RATE_LIMIT_ENABLED": "true",
        "CLINVK_SERVER__RATE_LIMIT_RPS": "0.01",
        "CLINVK_SERVER__RATE_LIMIT_BURST": "3",
        "CLINVK_API_KEYS": "k",
    }
    with serving(workers=0, apis=2, **config) as service:
        urls = [base + "/api/v1/backends" for _, base in service.apis]
        guesses = [httpx.get(urls[n % 2], headers={"x-api-key": f"guess{n}"}) for n in range(5)]
        known = httpx.get(urls[0], headers={"x-api-key": "k"})

    assert [answer.status_code for answer in guesses] == [401, 401, 401, 429, 429]
    assert int(guesses[-1].headers["retry-after"]) >= 60
    assert known.status_code == 200


def test_whoever_guesses_at_keys_is_limited_also_where_nobody_else_is():
    with serving(workers=0, apis=2, CLINVK_API_KEYS="k") as service, httpx.Client(timeout=30) as client:
        urls = [base + "/api/v1/backends" for _, base in service.apis]
        begun = time.monotonic()
        guesses = [client.get(urls[n % 2], headers={"x-api-key": f"guess{n}"}) for n in range(60)]
        took = time.monotonic() - begun
        known = [client.get(urls[0], headers={"x-api-key": "k"}) for _ in range(40)]

    statuses = [answer.status_code for answer in guesses]
    assert set(statuses) == {401, 429}
    assert 20 <= statuses.count(401) <= 21 + math.ceil(took)
    assert all(int(one.headers["retry-after"]) >= 1 for one in guesses if one.status_code == 429)
    assert {answer.status_code for answer in known} == {200}
    assert "ratelimit-limit" not in known[0].headers


def test_two_keys_of_one_name_have_a_limit_each():
    config = {
        "CLINVK_SERVER__RATE_LIMIT_ENABLED": "true",
        "CLINVK_SERVER__RATE_LIMIT_RPS": "0.01",
        "CLINVK_SERVER__RATE_LIMIT_BURST": "2",
        "CLINVK_SERVER__API_KEYS": '[{"key": "k1", "name": "team"}, {"key": "k2", "name": "team"}]',
    }
    with serving(workers=0, **config) as service:
        url = service.apis[0][1] + "/api/v1/backends"
        answers = [
            httpx.get(url, headers={"x-api-key": key}).status_code for key in ("k1", "k1", "k1", "k2", "k2", "k2")
        ]

    assert answers == [200, 200, 429, 200, 200, 429]
