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


async def singles(base: str, count: int, callers: int) -> float:
    """Runs a second when so many are asked for one by one, by so many callers."""
    port = urlsplit(base).port
    request = post(base, _BODY)
    left = count

    async def call() -> None:
        nonlocal left
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while left > 0:
            left -= 1
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
        writer.close()

    begun = time.perf_counter()
    await asyncio.gather(*[call() for _ in range(callers)])
    return count / (time.perf_counter() - begun)


async def drain(url: str, *depths: int) -> str:
    """Runs a second carried out while so many wait, for each of the depths, as JSON."""
    from shared.ids import new_id
    from shared.redis import Redis
    from shared.run import RunSpec
    from shared.store import Limits, create_scripts
    from shared.store.runs import Depth, Runs

    redis = Redis(url)
    runs = Runs(create_scripts(redis, Limits(lease_s=4)))
    added = 0

    async def top_up(depth: int) -> None:
        nonlocal added
        counts = await runs.counts()
        missing = depth - counts["waiting"]
        for _ in range(0, missing, 500):
            specs = [
                RunSpec(id=new_id("run"), tenant="bench", backend="echo", prompt="hello\n", ephemeral=True)
                for _ in range(min(500, missing))
            ]
            await asyncio.gather(*[runs.add(s, "echo", follower=None, depth=Depth(10**6)) for s in specs])
            added += len(specs)
            missing -= len(specs)

    rates = []
    for depth in depths:
        await top_up(depth)
        counts = await runs.counts()
        done, begun = added - sum(counts.values()), time.perf_counter()
        while time.perf_counter() - begun < 8:
            await top_up(depth)
            await asyncio.sleep(0.05)
        took = time.perf_counter() - begun
        counts = await runs.counts()
        rates.append((added - sum(counts.values()) - done) / took)
    await redis.aclose()
    return json.dumps(rates)


class _Watching(asyncio.Protocol):
    """Follows one stream and keeps each piece with the time of its arrival; what they say is looked at afterwards."""

    def __init__(self, request: bytes) -> None:
        self._request = request
        self.pieces: list[tuple[float, bytes]] = []
        self.over = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.WriteTransport) -> None:
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self.pieces.append((time.time(), data))
        if data.endswith(b"0\r\n\r\n") and not self.over.done():
            self.over.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.over.done():
            self.over.set_result(exc)

    def words(self) -> list[tuple[float, float]]:
        """When each word was said, and when it arrived."""
        found = []
        rest = b""
        for at, piece in self.pieces:
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                if b'"type":"message"' in line:
                    found += [(float(word), at) for word in json.loads(line)["content"]["text"].split()]
        return found


async def follow(base: str, count: int, starting_s: float, words: int) -> str:
    """Each word's time from its being said to its arrival, while all the streams are open and none begins or ends."""
    port = urlsplit(base).port
    loop = asyncio.get_running_loop()
    request = post(base, {**_BODY, "output_format": "stream-json"})
    watching = []
    for _ in range(count):
        _, one = await loop.create_connection(lambda: _Watching(request), "127.0.0.1", port)
        watching.append(one)
        await asyncio.sleep(starting_s / count)
    async with asyncio.timeout(120):
        await asyncio.gather(*[one.over for one in watching])
    found = [one.words() for one in watching]
    begun = max(said[0][0] for said in found) + 1
    ended = min(said[-1][0] for said in found) - 1
    lags = sorted((at - said) * 1000 for each in found for said, at in each if begun <= said <= ended)
    return json.dumps(
        {
            "lost": count * words - sum(map(len, found)),
            "rate": len(lags) / (ended - begun),
            "seconds": ended - begun,
            "p50": lags[len(lags) // 2],
            "p99": lags[int(len(lags) * 0.99)],
        }
    )


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
