"""Limits how often a caller may ask: each key by itself, who has none by the client's address."""

import hashlib
import ipaddress
import math
from collections.abc import Callable, Mapping, Sequence

from litestar.types import ASGIApp, Message, Receive, Scope, Send

from api.keys import Key
from api.layers import is_open, refuse
from shared.errors import RateLimited, StoreUnavailable
from shared.store.rates import Rates, Taken

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# Of wrong keys from one address, whatever the configuration: who guesses gets nowhere, and who mistypes is told so.
GUESSES_PER_S, GUESSES_AT_ONCE = 1.0, 20


class RateLimit:
    """Every answer says what is left. Where the store is away nothing is limited, since nothing is carried out either.

    With `everybody` off only keys with a limit of their own are held to it."""

    def __init__(
        self,
        app: ASGIApp,
        rates: Callable[[], Rates],
        *,
        per_s: float,
        burst: int,
        proxies: Sequence[str],
        everybody: bool = True,
    ) -> None:
        self._app = app
        self._rates = rates
        self._per_s = per_s
        self._burst = burst
        self._everybody = everybody
        self._proxies = [ipaddress.ip_network(one, strict=False) for one in proxies]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        key: Key | None = scope.get("state", {}).get("key")
        own = key is not None and (key.rps is not None or key.burst is not None)
        if str(scope["type"]) != "http" or is_open(scope["path"]) or not (self._everybody or own):
            await self._app(scope, receive, send)
            return
        per_s, burst = self._per_s, self._burst
        if own and key is not None:
            per_s, burst = key.rps or per_s, key.burst or max(burst, math.ceil(key.rps or 0))
        try:
            taken = await self._rates().take(self._who(scope), per_s=per_s, burst=burst)
        except StoreUnavailable:
            await self._app(scope, receive, send)
            return
        told = _headers(taken, burst)
        if not taken.allowed:
            message = f"more than {per_s:g} requests a second ({burst} at once) from this caller"
            await refuse(scope, send, RateLimited(message, retry_after_s=taken.wait_s), *told)
            return

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *told]
            await send(message)

        await self._app(scope, receive, sending)

    def _who(self, scope: Scope) -> str:
        """Never the key or the address itself: names in Redis are seen by operators."""
        key: Key | None = scope.get("state", {}).get("key")
        if key is not None:
            return key.id
        address = client_address(scope.get("client"), dict(scope["headers"]), self._proxies)
        return "address:" + hashlib.sha256(neighbourhood(address).encode()).hexdigest()[:32]


def _headers(taken: Taken, burst: int) -> list[tuple[bytes, bytes]]:
    values = {"limit": burst, "remaining": taken.left, "reset": math.ceil(taken.full_s)}
    found = [(f"ratelimit-{name}".encode(), str(value).encode()) for name, value in values.items()]
    return found + [(b"x-" + name, value) for name, value in found]


def client_address(client: object, headers: Mapping[bytes, bytes], proxies: Sequence[Network]) -> str:
    """The address that the nearest trusted proxy saw; a header from anybody else means nothing."""
    address = _alone(str(client[0])) if isinstance(client, tuple | list) and client else "unknown"
    for seen in reversed(headers.get(b"x-forwarded-for", b"").decode("latin-1").split(",")):
        if not _trusted(address, proxies) or not seen.strip():
            break
        address = _alone(seen.strip())
    return address


def _alone(text: str) -> str:
    """Without the port that some balancers write behind it, which would make a caller of each connection; and IPv4 as
    such, also where a socket for both kinds gives it as IPv6."""
    host, _, port = text.rpartition(":")
    if text.startswith("["):
        host = text[1:].partition("]")[0]
    elif ":" in host or not port.isdecimal():
        host = text
    try:
        found = ipaddress.ip_address(host)
    except ValueError:
        return text
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return str(mapped or found)


def neighbourhood(address: str) -> str:
    """What is limited as one: an IPv4 address, or the /64 that an IPv6 one is in, since one caller has all of that."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address
    return str(ipaddress.ip_network((found.packed, 64), strict=False)) if found.version == 6 else address


def _trusted(address: str, proxies: Sequence[Network]) -> bool:
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    as_ipv6 = ipaddress.ip_address(f"::ffff:{found}") if found.version == 4 else found
    return any(found in proxy or as_ipv6 in proxy for proxy in proxies)
