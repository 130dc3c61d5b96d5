"""Slow, broken and hostile clients against the real server: each gets a clear answer or none, and harms nobody."""

import contextlib
import gzip
import http.client
import json
import re
import select
import socket
import time
from pathlib import Path

import httpx
import pytest

from tests.system.service import Service, prompt, serving, submit, until, whole

pytestmark = pytest.mark.processes

READ_S, WRITE_S, IDLE_S = 1.0, 1.5, 3.0
TICK_S = 0.002  # the clock of the server's loop counts whole milliseconds


@pytest.fixture(scope="module")
def service():
    limits = {
        "CLINVK_SERVER__READ_TIMEOUT_SECS": str(READ_S),
        "CLINVK_SERVER__WRITE_TIMEOUT_SECS": str(WRITE_S),
        "CLINVK_SERVER__IDLE_TIMEOUT_SECS": str(IDLE_S),
        "CLINVK_SERVER__HEARTBEAT_SECS": "0.2",
        "CLINVK_SERVER__MAX_REQUEST_BODY_BYTES": "5000000",
    }
    with serving(**limits) as made:
        yield made


@pytest.fixture
def base(service):
    return service.apis[0][1]


class Wire:
    """A client that says what it is told to, byte by byte."""

    def __init__(self, base: str, window: int | None = None) -> None:
        self.socket = socket.socket()
        if window is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
        self.socket.settimeout(20)
        self.socket.connect(("127.0.0.1", int(base.rpartition(":")[2])))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def say(self, data: bytes) -> None:
        self.socket.sendall(data)

    def rest(self) -> bytes:
        """All that comes until the server closes."""
        found = b""
        try:
            while got := self.socket.recv(1 << 16):
                found += got
        except ConnectionResetError:
            pass
        return found

    def answer(self) -> tuple[int, dict[str, str], bytes]:
        """One whole answer with a content length; the connection stays."""
        data = b""
        while b"\r\n\r\n" not in data:
            got = self.socket.recv(1)
            assert got, data
            data += got
        head, _, _ = data.partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        headers = {k.lower(): v for k, v in (line.split(": ", 1) for line in lines[1:])}
        body = b""
        while len(body) < int(headers.get("content-length", "0")):
            body += self.socket.recv(int(headers["content-length"]) - len(body))
        return int(lines[0].split()[1]), headers, body


def problem(raw: bytes) -> dict:
    """The error of one raw answer, which must be in our own shape."""
    head, _, body = raw.partition(b"\r\n\r\n")
    assert b"content-type: application/problem+json" in head, raw[:300]
    assert b"x-request-id: " in head
    found = json.loads(body)
    assert str(found["status"]).encode() == head.split()[1]
    return found


def post(path: bytes, length: int, *headers: bytes) -> bytes:
    lines = [b"POST " + path + b" HTTP/1.1", b"Host: localhost", b"Content-Length: %d" % length, *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n"


GET = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
PROMPT = b"/api/v1/prompt"


def took(begun: float) -> float:
    return time.monotonic() - begun


def test_a_head_that_comes_drop_by_drop_is_408_though_there_is_always_some_more_of_it(base):
    begun = time.monotonic()
    with Wire(base) as wire:
        wire.say(b"GET /health HTTP/1.1\r\nHost: localhost\r\n")
        wire.socket.settimeout(0.1)
        answer = b""
        while not answer and took(begun) < 10:
            try:
                wire.say(b"X-A: b\r\n")
                answer = wire.socket.recv(100_000)
            except TimeoutError:
                pass

    assert problem(answer)["error"]["code"] == "request_timeout"
    assert READ_S - TICK_S <= took(begun) < READ_S + 2


@pytest.mark.parametrize(
    ("path", "shape"),
    [
        (b"/api/v1/prompt", lambda body: body["error"]["code"] == "request_timeout"),
        (b"/openai/v1/chat/completions", lambda body: body["error"]["code"] == "request_timeout"),
        (b"/v1/messages", lambda body: body["error"]["type"] == "timeout_error" and body["type"] == "error"),
    ],
)
def test_a_body_that_does_not_come_is_408_in_the_words_of_who_asked(base, path, shape):
    begun = time.monotonic()
    with Wire(base) as wire:
        wire.say(post(path, 1000) + b'{"backend":')
        answer = wire.rest()

    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"x-should-retry: true" in answer
    assert shape(problem(answer))
    assert READ_S - TICK_S <= took(begun) < READ_S + 2


def test_who_says_nothing_is_closed_without_a_word_after_the_idle_limit(base):
    begun = time.monotonic()
    with Wire(base) as fresh, Wire(base) as used:
        used.say(GET)
        assert used.answer()[0] == 200
        assert (fresh.rest(), used.rest()) == (b"", b"")

    assert IDLE_S - TICK_S <= took(begun) < IDLE_S + 2


def test_empty_lines_do_not_keep_a_connection(base):
    begun = time.monotonic()
    with Wire(base) as wire:
        wire.socket.settimeout(0.2)
        while took(begun) < 10:
            try:
                wire.say(b"\r\n")
                if wire.socket.recv(10) == b"":
                    break
            except TimeoutError:
                pass
            except (BrokenPipeError, ConnectionResetError):
                break

    assert took(begun) < IDLE_S + 2


def is_open(service: Service, wire: Wire) -> bool:
    """Whether the server has this connection: once it has closed it, the kernel keeps what is left in other states."""
    process, base = service.apis[0]
    ends = [f":{port:04X}" for port in (int(base.rpartition(":")[2]), wire.socket.getsockname()[1])]
    rows = [line.split() for line in Path(f"/proc/{process.pid}/net/tcp").read_text().splitlines()[1:]]
    return any([row[1][-5:], row[2][-5:], row[3]] == [*ends, "01"] for row in rows)


def test_a_client_that_takes_nothing_of_its_answer_is_cut_off_and_its_run_is_kept(service, base):
    run_id = submit(base, "x" * 4_500_000)
    until(lambda: httpx.get(f"{base}/api/v1/runs/{run_id}").json().get("result"))

    with Wire(base, window=4096) as wire:
        begun = time.monotonic()
        wire.say(f"GET /api/v1/runs/{run_id} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        assert is_open(service, wire)
        until(lambda: not is_open(service, wire))
        assert WRITE_S * 0.9 < took(begun) < WRITE_S * 2 + 2
        assert len(wire.rest()) < 4_500_000

    assert httpx.get(f"{base}/api/v1/runs/{run_id}").status_code == 200


def test_a_slow_reader_of_a_long_answer_gets_all_of_it(base):
    run_id = submit(base, "y" * 4_500_000)
    until(lambda: httpx.get(f"{base}/api/v1/runs/{run_id}").json().get("result"))
    begun = time.monotonic()

    with Wire(base, window=4096) as wire:
        wire.say(f"GET /api/v1/runs/{run_id} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        found = 0
        while got := wire.socket.recv(40_000):
            found += len(got)
            while took(begun) < WRITE_S * 2.5 * found / 4_500_000:  # evenly over more than two limits
                pass

    assert found > 4_500_000
    assert took(begun) > WRITE_S * 2


def test_a_stream_that_is_read_outlives_every_limit(base):
    with httpx.stream(
        "POST",
        base + "/api/v1/prompt",
        json={"backend": "echo", "prompt": "a b c d e f", "extra": ["--delay-ms=800"]},
        headers={"accept": "text/event-stream"},
        timeout=30,
    ) as answer:
        text = answer.read().decode()

    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")]
    assert whole(events) == "a b c d e f"


def test_a_pipelined_request_that_waits_for_a_long_one_is_not_timed_out(base):
    body = json.dumps({"backend": "echo", "prompt": "a b c", "extra": ["--delay-ms=700"]}).encode()
    more = json.dumps({"backend": "echo", "prompt": "later"}).encode()
    with Wire(base) as wire:
        wire.say(post(PROMPT, len(body)) + body + post(PROMPT, len(more)) + more[:10])
        first = wire.answer()
        wire.say(more[10:] + GET)
        second, third = wire.answer(), wire.answer()

    assert [json.loads(one[2]).get("output") for one in (first, second)] == ["a b c", "later"]
    assert third[0] == 200


def test_two_hundred_pipelined_requests_are_answered_in_order(base):
    with Wire(base) as wire:
        wire.say(
            b"".join(
                b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Request-ID: %d\r\n\r\n" % number for number in range(200)
            )
        )
        assert [wire.answer()[1]["x-request-id"] for _ in range(200)] == [str(number) for number in range(200)]


@pytest.mark.parametrize(
    "head",
    [
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Big: " + b"a" * 100_000 + b"\r\n\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + b"X-A: b\r\n" * 300 + b"\r\n",
        b"GET /health HTTP/1.1\r\nX-Endless: " + b"a" * 300_000,
        b"GET /health HTTP/1.1\r\n" + b"a" * 300_000,
    ],
    ids=["header", "url", "many", "endless", "name"],
)
def test_a_huge_head_is_431(base, head):
    with Wire(base) as wire:
        wire.say(head)
        answer = wire.rest()

    assert answer.startswith(b"HTTP/1.1 431 ")
    assert problem(answer)["error"]["code"] == "headers_too_large"


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/9.9\r\n\r\n",
        b"G\0T / HTTP/1.1\r\n\r\n",
        b"GET /health HTTP/1.1\r\nX: a\0b\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"CONNECT localhost:22 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"POST /api/v1/prompt HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        b"POST /api/v1/prompt HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /api/v1/prompt HTTP/1.1\r\nHost: a\r\nContent-Length: -3\r\n\r\n",
        b"POST /api/v1/prompt HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked, x\r\n\r\n",
        b"POST /api/v1/prompt HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\n X: folded\r\n\r\n",
    ],
)
def test_what_is_no_http_is_400_or_refused_and_the_connection_ends(base, data):
    with Wire(base) as wire:
        wire.say(data)
        answer = wire.rest()

    assert 400 <= problem(answer)["status"] < 500


@pytest.mark.parametrize(
    "path",
    [
        "/api/v1/runs/%00",
        "/%00",
        "/api/v1/sessions/%00%ff",
        "/api/v1/runs/%F0%28",
        "/docs/..%2f..%2fetc%2fpasswd",
        "/%2e%2e/%2e%2e",
        "/openai/v1/models/%00",
        "/api/v1/runs/*",
    ],
)
def test_strange_paths_are_404(base, path):
    answer = httpx.get(base + path)

    assert answer.status_code == 404
    assert answer.json()["status"] == 404


def test_a_body_beyond_the_limit_is_413_before_it_has_come(base):
    with Wire(base) as wire:
        wire.say(post(PROMPT, 5_000_001))
        status, _, body = wire.answer()

    assert (status, json.loads(body)["error"]["code"]) == (413, "request_too_large")


def test_a_packed_body_is_415_and_its_connection_still_serves(base):
    packed = gzip.compress(json.dumps({"backend": "echo", "prompt": "hi"}).encode())
    with httpx.Client(base_url=base) as client:
        refused = client.post("/api/v1/prompt", content=packed, headers={"content-encoding": "gzip"})

        assert (refused.status_code, refused.json()["error"]["code"]) == (415, "unsupported_encoding")
        assert client.get("/livez").status_code == 200


def test_a_body_without_a_length_is_413_while_it_still_comes_and_takes_no_memory_however_much_follows():
    limit, connections = 2_000_000, 10
    chunk = b"10000\r\n" + b"a" * 0x10000 + b"\r\n"
    with (
        serving(workers=0, CLINVK_SERVER__MAX_REQUEST_BODY_BYTES=str(limit)) as service,
        contextlib.ExitStack() as stack,
    ):

        def resident() -> int:
            return int(Path(f"/proc/{service.apis[0][0].pid}/statm").read_text().split()[1]) * 4096

        base = service.apis[0][1]
        before = most = resident()
        wires = [stack.enter_context(Wire(base)) for _ in range(connections)]
        for wire in wires:
            wire.say(b"POST /api/v1/prompt HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
            wire.say(chunk * (limit // 0x10000 + 1))  # a little more than the limit, and no end
        answers = [wire.answer() for wire in wires]
        for _ in range(30):
            for wire in wires:
                wire.say(chunk * 5)
            most = max(most, resident())

    assert {(status, json.loads(body)["error"]["code"]) for status, _, body in answers} == {(413, "request_too_large")}
    assert 30 * 5 * 0x10000 * connections > limit * connections * 4  # what was sent after that
    assert most - before < limit * connections * 2


def test_bodies_that_never_come_whole_hold_so_much_together_and_no_small_one_up():
    limit, room = 12_000_000, 16
    with serving(CLINVK_SERVER__MAX_REQUEST_BODY_BYTES=str(limit)) as service, contextlib.ExitStack() as stack:
        base = service.apis[0][1]

        def prompted(words: int) -> httpx.Response:
            body = {"backend": "echo", "prompt": "hi " * words, "dry_run": True}  # to say four million words takes long
            return httpx.post(base + "/api/v1/prompt", json=body, timeout=60)

        wires = [stack.enter_context(Wire(base)) for _ in range(room)]
        for wire in wires:
            wire.say(post(PROMPT, limit) + b" " * (limit - 10_000))
        large = 3_900_000
        begun = time.monotonic()
        until(lambda: prompted(large).status_code == 503)  # all the others have been read by then
        # More than the kernel holds, from a client that sends all before it reads: what it sends must go somewhere.
        client = http.client.HTTPConnection(base.removeprefix("http://"), timeout=60)
        body = json.dumps({"backend": "echo", "prompt": "hi " * large})
        client.request("POST", "/api/v1/prompt", body, {"content-type": "application/json"})
        refused = client.getresponse()

        assert time.monotonic() - begun < 15  # the limit of reading is 30 s
        assert (refused.status, json.loads(refused.read())["error"]["code"]) == (503, "overloaded")
        assert refused.headers["retry-after"]
        client.close()
        assert prompted(1).status_code == 200
        assert [select.select([wire.socket], [], [], 0)[0] for wire in wires] == [[]] * room
        for wire in wires:
            wire.socket.close()
        until(lambda: prompted(large).status_code == 200)


@pytest.mark.parametrize("more", [0, 1, 1000], ids=["nothing more", "one byte more", "bytes without end"])
def test_who_is_refused_before_its_body_has_come_cannot_hold_the_connection(base, more):
    with Wire(base) as wire:
        wire.say(post(PROMPT, 5_000_001))
        assert wire.answer()[0] == 413
        begun = time.monotonic()
        wire.socket.settimeout(0.1)
        closed = False
        while not closed and took(begun) < 10:
            try:
                if more:
                    wire.say(b" ")
                    more -= 1
                closed = wire.socket.recv(10) == b""
            except TimeoutError:
                pass
            except (BrokenPipeError, ConnectionResetError):
                closed = True

    assert closed
    assert READ_S * 0.9 < took(begun) < READ_S + 2


def test_who_is_refused_and_then_sends_its_body_whole_may_ask_again_and_is_idle_after_that(base):
    with Wire(base) as wire:
        wire.say(post(PROMPT, 5_000_001))
        first = wire.answer()[0]
        wire.say(b" " * 5_000_001 + GET)
        second = wire.answer()[0]
        wire.say(post(PROMPT, 5_000_001))
        third = wire.answer()[0]
        wire.say(b" " * 5_000_001)
        begun = time.monotonic()
        assert wire.rest() == b""

    assert [first, second, third] == [413, 200, 413]
    assert IDLE_S * 0.9 < took(begun) < IDLE_S + 2


def test_who_waits_for_permission_to_send_its_body_is_refused_without_sending_it(base):
    with Wire(base) as wire:
        wire.say(post(PROMPT, 6_000_000, b"Expect: 100-continue"))
        answer = wire.rest()

    assert answer.startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("depth", [65, 1000, 100_000])
def test_json_nested_too_deep_is_400(base, depth):
    answer = httpx.post(base + "/api/v1/prompt", content=b'{"a":' * depth + b"1" + b"}" * depth)

    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_request")


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("application/x-www-form-urlencoded", b"backend=echo&prompt=x"),
        ("multipart/form-data", b"--x\r\n\r\n--x--"),
        ("text/plain", b"hello"),
        ("application/json; charset=utf-16", json.dumps({"backend": "echo"}).encode("utf-16")),
        ("application/json", b"\0"),
        ("application/json", b"[]"),
        ("application/json", b""),
        ("\x80\xff", b"{"),
    ],
)
@pytest.mark.parametrize(
    "path", ["/api/v1/prompt", "/api/v1/chain", "/openai/v1/chat/completions", "/anthropic/v1/messages"]
)
def test_what_is_no_json_is_400_whatever_it_calls_itself(base, path, kind, body):
    answer = httpx.post(base + path, content=body, headers={b"content-type": kind.encode("latin-1")})

    assert (answer.status_code, answer.json()["status"]) == (400, 400)


def test_nul_bytes_in_a_prompt_are_said_back(base):
    assert prompt(base, "a\0b \x01\x1b[2J")["output"] == "a\0b \x01\x1b[2J"


@pytest.mark.parametrize("upgrade", [b"h2c", b"websocket"])
@pytest.mark.parametrize("apart", [False, True])
def test_an_upgrade_is_not_taken_up_and_the_request_is_served_whole(base, upgrade, apart):
    prompt = json.dumps({"backend": "echo", "prompt": "x"}).encode()
    offer = (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: " + upgrade, b"HTTP2-Settings: AAMAAABkAAQ")
    chunked = b"Content-Type: a/b\r\nTransfer-Encoding: chunked"
    with Wire(base) as wire:
        wire.say(post(PROMPT, len(prompt), *offer))
        if apart:
            with pytest.raises(TimeoutError):
                wire.socket.settimeout(0.2)
                wire.socket.recv(1)
            wire.socket.settimeout(20)
        wire.say(prompt)
        first = wire.answer()
        wire.say(
            post(PROMPT, 0, *offer).replace(b"Content-Length: 0", chunked)
            + b"%x\r\n%s\r\n0\r\n\r\n" % (len(prompt), prompt)
        )
        second = wire.answer()
        wire.say(GET.replace(b"\r\n\r\n", b"\r\n" + b"\r\n".join(offer) + b"\r\n\r\n") + GET)
        more = [wire.answer()[0] for _ in range(2)]

    assert [(one[0], json.loads(one[2])["output"]) for one in (first, second)] == [(200, "x")] * 2
    assert more == [200, 200]


def test_a_trailer_is_no_header(base):
    body = b"{}"
    with Wire(base) as wire:
        wire.say(
            b"POST /api/v1/prompt HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"2\r\n" + body + b"\r\n0\r\nX-Request-ID: forged\r\n\r\n"
        )
        status, headers, _ = wire.answer()

    assert (status, headers["x-request-id"] == "forged") == (400, False)


def test_what_the_connection_refuses_is_in_the_metrics_and_its_line_names_the_request_and_the_client():
    slow = post(PROMPT, 1000) + b'{"backend":'
    on = {"CLINVK_SERVER__METRICS_ENABLED": "true", "CLINVK_SERVER__READ_TIMEOUT_SECS": "1"}
    with serving(workers=0, **on) as service:
        process, base = service.apis[0]
        answers = []
        for data in (
            b"GET /hea",
            b"GET /health HTTP/1.1\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
            b"\x16\x03\x01\r\n\r\n",
            slow,
        ):
            with Wire(base) as wire:
                wire.say(data)
                answers.append(wire.rest())
        counted = until(lambda: (found := refusals(base)) and len(found) > 3 and found)
        lines = [json.loads(line) for line in process.log.read_text().splitlines() if line.startswith("{")]

    ids = [re.search(rb"\r\nx-request-id: (\S+)", answer)[1].decode() for answer in answers]
    told = [[line for line in lines if line.get("request_id") == one] for one in ids]
    assert [answer.split()[1] for answer in answers] == [b"408", b"431", b"400", b"408"]
    assert [one[0]["message"][:12] for one in told] == ["refused: 408", "refused: 431", "refused: 400", "refused: 408"]
    assert {(one[0]["client"], one[0]["level"]) for one in told} == {("127.0.0.1", "info")}
    assert [len(one) for one in told] == [1, 1, 1, 2]
    assert told[3][1]["message"].startswith("POST /api/v1/prompt 408 ")  # and not 499, which nobody was told
    assert counted == {"other none 408", "other none 431", "other none 400", "POST /api/v1/prompt 408"}


def refusals(base: str) -> set[str]:
    """Method, route and status of what was counted once and was no success."""
    pattern = r'^clinvk_http_requests_total\{method="(.*)",route="(.*)",status="(4..)"\} 1\.0$'
    return {" ".join(found) for found in re.findall(pattern, httpx.get(base + "/metrics").text, re.MULTILINE)}


def test_a_client_that_hangs_up_in_the_middle_of_its_body_is_no_fault_of_the_service(service, base):
    with Wire(base) as wire:
        wire.say(post(PROMPT, 1000, b"X-Request-ID: gone-1") + b"{")

    log = service.apis[0][0].log
    line = until(lambda: [one for one in log.read_text().splitlines() if "gone-1" in one])[0]
    assert " 499 " in line


def test_half_open_connections_and_ten_times_as_many_idle_ones_leave_the_service_as_quick(service, base):
    wires = [Wire(base) for _ in range(500)]
    try:
        for wire in wires[:50]:
            wire.say(b"GET /hea")
        begun = time.monotonic()
        found = prompt(base, "still here")
        assert found["output"] == "still here"
        # But for the CLI, whose start takes what the machine lets it.
        assert took(begun) - found["duration_ms"] / 1000 < READ_S
    finally:
        for wire in wires:
            wire.socket.close()

    until(lambda: len(list(Path(f"/proc/{service.apis[0][0].pid}/fd").iterdir())) < 100)


def test_the_api_may_have_as_many_files_as_the_host_allows(service, base):
    limits = Path(f"/proc/{service.apis[0][0].pid}/limits").read_text()

    soft, hard = next(line for line in limits.splitlines() if line.startswith("Max open files")).split()[3:5]
    assert soft == hard
