"""nginx and Caddy for real, as deploy/ has them, in front of two replicas: what they must leave as it is."""

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from shared.config import Config
from tests.deploy.found import DEPLOY, system
from tests.system.service import Service, Stream, free_port, living, run, serving, submit, until, whole

pytestmark = pytest.mark.processes

WORDS = " ".join(f"word{i}" for i in range(40))


@contextlib.contextmanager
def started(command: list[str], base: str, **env: str) -> Iterator[None]:
    folder = Path(tempfile.mkdtemp(prefix="clinvk-proxy-"))
    with (folder / "log").open("wb") as log:
        proxy = subprocess.Popen(
            command,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(folder), **env},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        until(lambda: up(base) or proxy.poll() is not None)
        assert proxy.poll() is None, (folder / "log").read_text()
        yield
    finally:
        proxy.send_signal(signal.SIGTERM)
        proxy.wait(10)


def up(base: str) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(base + "/health", verify=False).status_code == 200
    return False


@contextlib.contextmanager
def nginx(service: Service) -> Iterator[str]:
    """The file as it is, but for names, ports and the certificate's place."""
    binary, openssl = system("nginx", "nginx"), system("openssl", "openssl")
    folder = Path(tempfile.mkdtemp(prefix="clinvk-nginx-"))
    made = f"{openssl} req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -keyout {folder}/privkey.pem"
    made += f" -out {folder}/fullchain.pem"
    subprocess.run(
        made.split(),
        check=True,
        capture_output=True,
    )
    port = free_port()
    text = (DEPLOY / "nginx" / "clinvk.conf").read_text()
    for there, here in (
        ("listen 443 ssl;", f"listen 127.0.0.1:{port} ssl;"),
        ("/etc/ssl/clinvk", str(folder)),
        ("10.0.0.11:8080", service.apis[0][1].removeprefix("http://")),
        ("10.0.0.12:8080", service.apis[1][1].removeprefix("http://")),
    ):
        assert there in text
        text = text.replace(there, here)
    temp = "".join(
        f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    main = folder / "nginx.conf"
    main.write_text(
        f"daemon off; pid {folder}/pid; error_log stderr; worker_processes 1;\n"
        f"{'user root;' if os.getuid() == 0 else ''} events {{}}\nhttp {{ access_log off; {temp}\n{text}}}\n"
    )
    base = f"https://127.0.0.1:{port}"
    with started([binary, "-c", str(main), "-p", str(folder), "-e", "stderr"], base):
        yield base


@contextlib.contextmanager
def caddy(service: Service) -> Iterator[str]:
    """One replica for each of the two ports would need a name of its own: `dynamic` is asked for the first alone."""
    port = free_port()
    base = f"http://127.0.0.1:{port}"
    command = [
        system("caddy", "caddy"),
        "run",
        "--adapter",
        "caddyfile",
        "--config",
        str(DEPLOY / "caddy" / "Caddyfile"),
    ]
    upstream = service.apis[0][1].rpartition(":")[2]
    where = {"SITE_ADDRESS": base, "API_NAME": "localhost", "API_PORT": upstream}
    with started(command, base, CADDY_ADMIN=f"127.0.0.1:{free_port()}", **where):
        yield base


PROXIES = {"nginx": nginx, "caddy": caddy}


@pytest.fixture(scope="module", params=PROXIES)
def proxied(request: pytest.FixtureRequest) -> Iterator[tuple[Service, str]]:
    config = {"CLINVK_SERVER__HANGUP_GRACE_SECS": "0.5", "CLINVK_SERVER__TRUSTED_PROXIES": '["127.0.0.1"]'}
    with serving(apis=2, **config) as service, PROXIES[request.param](service) as base:
        yield service, base


def followed(base: str, **body: Any) -> Stream:
    body = {"backend": "echo", "output_format": "stream-json", **body}
    return Stream("POST", base + "/api/v1/prompt", verify=False, json=body)


def test_a_stream_passes_token_by_token(proxied):
    _, base = proxied

    following = followed(base, prompt=WORDS, extra=["--delay-ms=50"])
    first = following.next()
    begun = time.monotonic()
    events = [first, *following.rest()]

    assert whole(events) == WORDS
    assert time.monotonic() - begun > 40 * 0.05 / 2  # what is held back comes at once, at the end


def test_a_client_that_hangs_up_ends_its_cli(proxied):
    service, base = proxied
    following = followed(base, prompt="stay", extra=["--hang"])
    run_id = following.run_id
    following.next()

    following.hang_up()

    until(lambda: not living(f"CLINVK_RUN={run_id}"), 10)
    until(lambda: run(service.apis[0][1], run_id)["status"] == "cancelled")


def test_whole_answers_and_sdk_streams_pass_too(proxied):
    _, base = proxied
    body = {"model": "echo", "messages": [{"role": "user", "content": WORDS}], "stream": True}

    answer = httpx.post(base + "/api/v1/prompt", json={"backend": "echo", "prompt": "hello"}, verify=False)
    stream = httpx.post(base + "/openai/v1/chat/completions", json=body, verify=False, timeout=30)

    assert answer.json()["output"] == "hello"
    assert stream.text.rstrip().endswith("data: [DONE]")
    assert "content-length" not in stream.headers


def test_a_body_that_is_too_large_is_refused_and_a_large_one_is_not(proxied):
    _, base = proxied

    def status(size: int) -> int:
        body = b'{"backend": "echo", "dry_run": true, "prompt": "%s"}'
        body = body.replace(b"%s", b"x" * (size - len(body) + 2))
        headers = {"Content-Type": "application/json"}
        answer = httpx.post(base + "/api/v1/prompt", content=body, headers=headers, verify=False, timeout=60)
        return answer.status_code

    limit = Config().server.max_request_body_bytes
    assert status(limit) == 200
    assert status(limit + 1) == 413


@pytest.mark.parametrize("kind", PROXIES)
def test_the_address_behind_a_proxy_is_the_clients_whatever_that_claims_to_be(kind):
    config = {
        "CLINVK_SERVER__TRUSTED_PROXIES": '["127.0.0.1"]',
        "CLINVK_SERVER__RATE_LIMIT_ENABLED": "true",
        "CLINVK_SERVER__RATE_LIMIT_RPS": "0.01",
        "CLINVK_SERVER__RATE_LIMIT_BURST": "5",
    }

    def client(address: str) -> httpx.Client:
        return httpx.Client(transport=httpx.HTTPTransport(verify=False, local_address=address))

    with (
        serving(apis=2, **config) as service,
        PROXIES[kind](service) as base,
        client("127.0.0.2") as one,
        client("127.0.0.3") as other,
    ):
        run_id = submit(service.apis[0][1], "x")
        ended = one.delete(f"{base}/api/v1/runs/{run_id}", headers={"x-forwarded-for": "6.6.6.6"})
        entry = httpx.get(service.apis[0][1] + "/api/v1/audit").json()["entries"][0]
        asked = [one.get(base + "/api/v1/backends", headers={"x-forwarded-for": f"6.6.6.{n}"}) for n in range(6)]
        unharmed = other.get(base + "/api/v1/backends", headers={"x-forwarded-for": "127.0.0.2"})

    assert ended.is_success
    assert (entry["target"], entry["address"]) == (run_id, "127.0.0.2")
    assert [answer.status_code for answer in asked] == [200] * 4 + [429] * 2
    assert unharmed.status_code == 200


def test_behind_nginx_one_replica_may_die_and_no_post_is_sent_twice():
    with serving(apis=2) as service, nginx(service) as base:
        followers = [followed(base, prompt="stay", extra=["--hang"]) for _ in range(4)]
        ids = [following.run_id for following in followers]

        service.apis[0][0].kill()

        answers = [
            httpx.post(base + "/api/v1/prompt", json={"backend": "echo", "prompt": f"{i}"}, verify=False)
            for i in range(6)
        ]
        assert [answer.json()["output"] for answer in answers] == [f"{i}" for i in range(6)]
        listed = httpx.get(service.apis[1][1] + "/api/v1/runs").json()["total"]
        assert listed == len(ids) + len(answers)
