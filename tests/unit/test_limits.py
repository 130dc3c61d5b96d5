"""Whose address it is, and what a limited caller is told."""

import ipaddress

import pytest

from api.limits import client_address

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
