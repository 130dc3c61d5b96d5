"""Whose address it is, and what a limited caller is told."""

import ipaddress

import pytest

from api.limits import client_address

PROXIES = [ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("::1/128")]


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
    ],
)
def test_only_a_trusted_proxy_is_believed(client, forwarded, expected):
    headers = {b"x-forwarded-for": forwarded.encode()} if forwarded else {}

    assert client_address(client, headers, PROXIES) == expected
