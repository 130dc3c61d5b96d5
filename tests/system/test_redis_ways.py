"""The whole service over a Redis by TLS, one with ACL users, and one that fails over under its sentinels."""

import contextlib
import os
import re
import shutil
from pathlib import Path

import httpx
import pytest

from tests.pages import one
from tests.redis_ways import Certificates, TlsFront, TlsServer, Watched
from tests.system.service import Service, ended, prompt, stream, submit, until, whole

pytestmark = pytest.mark.processes

RIGHTS = one("docs/redis.md", "redis")
CLAIMED = {RIGHTS.claim}
LEASE_S = "10"  # longer than a failover takes on a busy machine, as docs/redis.md says


@contextlib.contextmanager
def service_over(url=None, redis=None, **config):
    service = Service(**config)
    if redis is not None:
        service.redis.close()
        service.redis = redis
    try:
        if url is not None:
            service.config["CLINVK_REDIS_URL"] = url(service)
        service.api()
        service.worker()
        yield service
    except BaseException:
        print(service.logs())
        raise
    finally:
        service.close()


def works(base: str) -> None:
    """Each of the three users of Redis: commands, live events, and Celery's messages."""
    assert prompt(base, "hello")["output"] == "hello"
    assert whole(stream(base, "a b c", "--delay-ms=50").rest()) == "a b c"
    assert ended(base, submit(base, "later"))["status"] == "succeeded"
    flow = httpx.post(base + "/api/v1/chain", json={"steps": [{"backend": "echo", "prompt": "x"}] * 2}, timeout=30)
    assert flow.json()["completed_steps"] == 2


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    if shutil.which("openssl") is None:
        message = "openssl is missing: certificates cannot be made"
        (pytest.fail if os.environ.get("CLINVK_REQUIRE") else pytest.skip)(message)
    return Certificates(tmp_path_factory.mktemp("certificates"))


def test_all_goes_by_tls_with_a_client_certificate(certificates):
    fronts = []

    def url(service):
        fronts.append(TlsFront(service.redis.folder / "redis.sock", certificates))
        names = {"ssl_ca_certs": "ca.pem", "ssl_certfile": "client.pem", "ssl_keyfile": "client.key"}
        query = "&".join(f"{name}={certificates[file]}" for name, file in names.items())
        return f"rediss://127.0.0.1:{fronts[0].port}/0?{query}"

    with service_over(url) as service:
        works(service.apis[0][1])
        assert fronts[0].connections >= 4  # two of the API, those of the worker and of Celery
    fronts[0].close()


@pytest.mark.parametrize(
    "query",
    ["", "ssl_ca_certs={ca.pem}", "ssl_certfile={client.pem}&ssl_keyfile={client.key}", "ssl_cert_reqs=none"],
    ids=["nothing", "no client certificate", "unknown ca", "neither checked nor known"],
)
def test_a_server_that_is_not_proven_or_does_not_know_us_stops_the_start(certificates, query):
    service = Service()
    front = TlsFront(service.redis.folder / "redis.sock", certificates)
    try:
        query = re.sub(r"\{(.*?)\}", lambda found: certificates[found[1]], query)
        url = f"rediss://127.0.0.1:{front.port}/0?{query}"
        with pytest.raises(AssertionError, match=r"cannot reach Redis at|was reached, but"):
            service.config["CLINVK_REDIS_URL"] = url
            service.api()
    finally:
        service.close()
        front.close()


def rights() -> str:
    """As docs/redis.md prints them."""
    return RIGHTS.text.removeprefix("ACL SETUSER clinvk on >PASSWORD ").replace("\\\n", " ")


def test_an_acl_user_with_the_printed_rights_is_enough_and_may_do_nothing_else():
    def url(service):
        with service.redis.client() as client:
            client.execute_command("ACL", "SETUSER", "clinvk", "on", ">pass", *rights().split())
        return f"unix://clinvk:pass@{service.redis.folder / 'redis.sock'}"

    with service_over(url) as service:
        base = service.apis[0][1]
        works(base)
        run_id = submit(base, "stay", "--hang")
        until(lambda: httpx.get(f"{base}/api/v1/runs/{run_id}").json()["status"] == "running")
        assert httpx.delete(f"{base}/api/v1/runs/{run_id}").status_code == 202
        assert ended(base, run_id)["status"] == "cancelled"
        session = prompt(base, "one")["session_id"]
        assert httpx.delete(f"{base}/api/v1/sessions/{session}").status_code == 200
        assert httpx.get(base + "/health").json()["status"] in ("ok", "degraded")
        for path in ("runs", "flows", "sessions", "workers", "backends"):
            assert httpx.get(f"{base}/api/v1/{path}").status_code == 200

        with service.redis.client() as client:
            assert client.execute_command("ACL", "LOG") == []
            for words in (
                ["FLUSHALL"],
                ["CONFIG", "GET", "*"],
                ["KEYS", "*"],
                ["GET", "other"],
                ["SUBSCRIBE", "other"],
            ):
                refused = str(client.execute_command("ACL", "DRYRUN", "clinvk", *words))
                assert "permission" in refused, words


def test_a_failover_in_the_middle_of_streams_loses_nothing_and_every_run_ends_truly():
    with service_over(redis=Watched(), CLINVK_WORKER__LEASE_SECS=LEASE_S) as service:
        base = service.apis[0][1]
        works(base)
        words = " ".join(f"w{number}" for number in range(120))
        streams = [stream(base, words, "--delay-ms=100") for _ in range(3)]
        firsts = [one.next() for one in streams]
        queued = [submit(base, f"later {number}", "--delay-ms=500") for number in range(4)]
        until(service.redis.in_step)

        service.redis.kill()

        for first, one in zip(firsts, streams, strict=True):
            assert whole([first, *one.rest()]) == words
            assert ended(base, one.run_id)["status"] == "succeeded"
        for number, run_id in enumerate(queued):
            assert ended(base, run_id)["result"]["output"] == f"later {number}"
        assert until(lambda: prompt(base, "after").get("output") == "after", 30)


@pytest.fixture(scope="module")
def tls_server(certificates):
    server = TlsServer(certificates, rights())
    yield server
    server.close()


FILES = {"ssl_ca_certs": "ca.pem", "ssl_certfile": "client.pem", "ssl_keyfile": "client.key"}


def files(certificates, **other):
    return {name: certificates[file] for name, file in (FILES | other).items() if file}


def test_all_goes_by_the_servers_own_tls_as_a_user_of_its_own(certificates):
    server = TlsServer(certificates, rights())

    with service_over(lambda _: server.url(**files(certificates)), redis=server) as service:
        base = service.apis[0][1]
        works(base)
        assert whole(stream(base, "long " * 20_000).rest()) == "long " * 20_000  # many records of TLS
        with server.client() as client:
            users = [row["user"] for row in client.client_list() if row["user"] != "admin"]
            assert users.count("clinvk") >= 4  # two of the API, those of the worker and of Celery
            assert set(users) == {"clinvk"}
            assert client.execute_command("ACL", "LOG") == []


@pytest.mark.parametrize(
    ("host", "password", "changed", "why"),
    [
        ("127.0.0.1", "p%40ss%2Fword", {"ssl_ca_certs": "other/ca.pem"}, "certificate"),
        ("127.0.0.1", "p%40ss%2Fword", {"ssl_ca_certs": ""}, "certificate"),
        ("localhost", "p%40ss%2Fword", {}, "certificate"),
        ("127.0.0.1", "p%40ss%2Fword", {"ssl_certfile": "", "ssl_keyfile": ""}, ""),
        ("127.0.0.1", "p%40ss%2Fword", {"ssl_certfile": "other/client.pem", "ssl_keyfile": "other/client.key"}, ""),
        ("127.0.0.1", "wrong", {}, "login"),
    ],
    ids=["another ca", "no ca", "another name", "no client certificate", "a client of another ca", "wrong password"],
)
def test_a_tls_server_is_not_believed_and_does_not_believe_without_proof(
    certificates, tls_server, host, password, changed, why
):
    other = Path(certificates["other"])
    if not other.exists():
        other.mkdir()
        Certificates(other)
    service = Service()
    try:
        service.config["CLINVK_REDIS_URL"] = tls_server.url(host, password, **files(certificates, **changed))
        with pytest.raises(AssertionError, match=rf"(cannot reach Redis at|was reached, but).*{why}"):
            service.api()
    finally:
        service.close()
    with tls_server.client() as client:
        assert all(row["user"] != "clinvk" for row in client.client_list())


def test_a_name_that_the_certificate_does_not_hold_is_believed_only_where_the_url_says_so(certificates, tls_server):
    url = tls_server.url("localhost", **files(certificates), ssl_check_hostname="false")
    service = Service(CLINVK_REDIS_URL=url)
    try:
        base = service.api()
        assert httpx.get(base + "/readyz").status_code == 200
    finally:
        service.close()


def test_sentinels_and_servers_by_their_own_tls_fail_over(certificates):
    with service_over(redis=Watched(certificates), CLINVK_WORKER__LEASE_SECS=LEASE_S) as service:
        base = service.apis[0][1]
        works(base)
        words = " ".join(f"w{number}" for number in range(80))
        running = stream(base, words, "--delay-ms=100")
        first = running.next()
        until(service.redis.in_step)

        service.redis.kill()

        assert whole([first, *running.rest()]) == words
        assert until(lambda: prompt(base, "after").get("output") == "after", 30)
