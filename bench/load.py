"""The callers of the benchmarks: plain asyncio sockets, so that they cost little beside what they measure."""

import asyncio
import json
import time
from urllib.parse import urlsplit

_BODY = {"backend": "echo", "prompt": "hello\n", "ephemeral": True}


def post(base: str, body: dict[str, object]) -> bytes:
    data = json.dumps(body).encode()
    host = urlsplit(base).netloc
    head = f"POST /api/v1/prompt HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    return head.encode() + f"Content-Length: {len(data)}\r\n\r\n".encode() + data


async def main(base: str, seconds: float, callers: int) -> float:
    """Answered runs a second; every answer must be a success."""
    port = urlsplit(base).port
    request = post(base, _BODY)
    stop = time.perf_counter() + seconds

    async def call() -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        count = 0
        while time.perf_counter() < stop:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            body = await reader.readexactly(length)
            assert b'"exit_code":0' in body, body
            count += 1
        writer.close()
        return count

    begun = time.perf_counter()
    total = sum(await asyncio.gather(*[call() for _ in range(callers)]))
    return total / (time.perf_counter() - begun)


async def follow(base: str, count: int) -> str:
    """Each event's time from its word's being said to its arrival, over many streams at once."""
    port = urlsplit(base).port
    lags: list[float] = []
    request = post(base, {**_BODY, "output_format": "stream-json"})

    async def one(number: int) -> int:
        await asyncio.sleep(number * 0.01)  # five seconds for all to begin, so that starting is not measured
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request)
        got = 0
        while line := await reader.readline():
            if b'"type":"message"' in line:
                now = time.time()
                said = json.loads(line)["content"]["text"].split()
                got += len(said)
                lags.extend((now - float(word)) * 1000 for word in said)
            if b'"type":"done"' in line or b'"type":"error"' in line:
                break
        writer.close()
        return got

    got = sum(await asyncio.gather(*[one(i) for i in range(count)]))
    lags.sort()
    return json.dumps({"got": got, "p50": lags[len(lags) // 2], "p99": lags[int(len(lags) * 0.99)]})


async def hold(url: str, count: int) -> None:
    """Opens idle streams, says `held`, and keeps them until its stdin ends."""
    parts = urlsplit(url)
    open_ones = []
    for _ in range(count):
        reader, writer = await asyncio.open_connection("127.0.0.1", parts.port)
        writer.write(f"GET {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\n\r\n".encode())
        await reader.readuntil(b"\r\n\r\n")
        open_ones.append((reader, writer))
    print("held", flush=True)
    await asyncio.to_thread(input_ended)
    for _, writer in open_ones:
        writer.close()


def input_ended() -> None:
    import sys

    sys.stdin.read()
