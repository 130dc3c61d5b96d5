"""Whose address it is, and what a limited caller is told."""

import asyncio
import ipaddress
from typing import Any

import pytest

from api.keys import Key
from api.limits import RateLimit, client_address, neighbourhood
from shared.config import ApiKey
from shared.store.rates import Rates, Taken

PROXIES = [
    ipaddress.ip_network("10.0.0.0/8"),
    ipaddress.ip_network("::1/128"),
    ipaddress.ip_network("::ffff:172.16.0.0/108"),
]


@pytest.mark.parametrize(
    ("client", "forwarded", "expected"),
    [
        (("1.2.3.4", 5), "", "1.2.3.4"),
        (("1.2.3.4", 5), "6.6.6.6", "1.2.3.4"),
        (("10.0.0.1", 5), "6.6.6.6", "6.6.6.6"),
        (("10.0.0.1", 5), "9.9.9.9, 6.6.6.6", "6.6.6.6"),
        (("10.0.0.1", 5), "9.9.9.9, 6.6.6.6, 10.2.2.2", "6.6.6.6"),
        (("10.0.0.1", 5), "10.3.3.3", "10.3.3.3"),
        (("10.0.0.1", 5), "nonsense", "nonsense"),
        (("10.0.0.1", 5), ",", "10.0.0.1"),
        (("::1", 5), "2001:db8::1", "2001:db8::1"),
        (None, "6.6.6.6", "unknown"),
        (("::ffff:10.0.0.1", 5), "6.6.6.6", "6.6.6.6"),
        (("::ffff:1.2.3.4", 5), "6.6.6.6", "1.2.3.4"),
        (("10.0.0.1", 5), "6.6.6.6:1234", "6.6.6.6"),
        (("10.0.0.1", 5), "9.9.9.9, 6.6.6.6:1, 10.2.2.2:65535", "6.6.6.6"),
        (("10.0.0.1", 5), "[2001:db8::1]:1234", "2001:db8::1"),
        (("10.0.0.1", 5), "[2001:DB8:0::1]", "2001:db8::1"),
        (("10.0.0.1", 5), "::ffff:6.6.6.6", "6.6.6.6"),
        (("10.0.0.1", 5), "[::ffff:6.6.6.6]:80", "6.6.6.6"),
        (("10.0.0.1", 5), "2001:db8::1:1234", "2001:db8::1:1234"),
        (("10.0.0.1", 5), "a.b.c.d:80", "a.b.c.d:80"),
        (("10.0.0.1", 5), "[", "["),
        (("172.16.0.1", 5), "6.6.6.6", "6.6.6.6"),
    ],
)
def test_only_a_trusted_proxy_is_believed(client, forwarded, expected):
    headers = {b"x-forwarded-for": forwarded.encode()} if forwarded else {}

    assert client_address(client, headers, PROXIES) == expected


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff:ffff:ffff:ffff", True),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
        ("2001:DB8:1:2:0:0:0:9", "2001:db8:1:2::9", True),
        ("fe80::1%eth0", "fe80::2%eth1", True),
        ("1.2.3.4", "1.2.3.5", False),
        ("unknown", "nonsense", False),
    ],
)
def test_an_ipv6_caller_is_its_network_since_it_has_all_of_that(one, other, same):
    assert (neighbourhood(one) == neighbourhood(other)) is same


class Counted(Rates):
    """Says who was counted."""

    def __init__(self) -> None:
        self.who: list[str] = []

    async def take(self, who: str, *, per_s: float, burst: int) -> Taken:  # the store's signature
        self.who.append(who)
        return Taken(allowed=True, left=1, wait_s=0, full_s=0)


def counted(key: Key | None, address: str) -> str:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        """The rest of the service."""

    rates = Counted()
    layer = RateLimit(app, lambda: rates, per_s=1, burst=1, proxies=())
    state = {"key": key, "tenant": "default" if key is None else key.tenant}
    scope = {"type": "http", "path": "/api/v1/runs", "client": (address, 1), "headers": [], "state": state}
    asyncio.run(layer(scope, None, None))  # type: ignore[arg-type]  # nothing is received or sent
    return rates.who[0]


def test_a_key_whose_tenant_is_named_default_is_limited_as_a_key_wherever_it_calls_from():
    key = Key.of(ApiKey(key="k", name="default"))

    assert counted(key, "1.2.3.4") == counted(key, "5.6.7.8") == key.id


def test_without_keys_all_are_the_tenant_default_and_limited_by_address():
    assert counted(None, "1.2.3.4") != counted(None, "5.6.7.8")
    assert counted(None, "2001:db8::1") == counted(None, "2001:db8::2")
