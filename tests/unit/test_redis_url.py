"""One URL for every way to Redis, read once."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kombu.utils.url import url_to_parts

from shared.redis_url import Place, parse


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("redis://", Place(hosts=(("localhost", 6379),))),
        ("redis://h:1/2", Place(hosts=(("h", 1),), db=2)),
        ("redis://h?db=3", Place(hosts=(("h", 6379),), db=3)),
        ("redis://[::1]:7/0", Place(hosts=(("::1", 7),))),
        ("redis://u:p%40%2F@h", Place(hosts=(("h", 6379),), username="u", password="p@/")),
        ("redis://:p@h", Place(hosts=(("h", 6379),), password="p")),
        ("redis://h?password=p&username=u", Place(hosts=(("h", 6379),), username="u", password="p")),
        ("unix:///run/redis.sock?db=1", Place(path="/run/redis.sock", db=1)),
        ("redis+socket://:p@/run/r.sock", Place(path="/run/r.sock", password="p")),
        (
            "rediss://h/0?ssl_ca_certs=/ca.pem&ssl_certfile=/c.pem&ssl_keyfile=/k.pem",
            Place(
                hosts=(("h", 6379),),
                tls={
                    "ssl_ca_certs": "/ca.pem",
                    "ssl_certfile": "/c.pem",
                    "ssl_keyfile": "/k.pem",
                    "ssl_cert_reqs": "required",
                    "ssl_check_hostname": True,
                },
            ),
        ),
        (
            "rediss://h?ssl_cert_reqs=CERT_NONE",
            Place(hosts=(("h", 6379),), tls={"ssl_cert_reqs": "none", "ssl_check_hostname": False}),
        ),
        (
            "redis+sentinel://u:p@a:1,b,[::1]:3/main/2?sentinel_username=su&sentinel_password=sp",
            Place(
                hosts=(("a", 1), ("b", 26379), ("::1", 3)),
                service="main",
                db=2,
                username="u",
                password="p",
                sentinel_username="su",
                sentinel_password="sp",
            ),
        ),
        (
            "rediss+sentinel://a/main",
            Place(hosts=(("a", 26379),), service="main", tls={"ssl_cert_reqs": "required", "ssl_check_hostname": True}),
        ),
    ],
)
def test_each_form_says_where_and_how(url, place):
    assert parse(url) == place


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://h", "must begin with"),
        ("h:6379", "must begin with"),
        ("sentinel://h/main", "must begin with"),
        ("redis://h/x", "no number"),
        ("redis://h/1/2", "too many parts"),
        ("redis://a,b/0", "only as redis+sentinel"),
        ("redis+sentinel://a,b", "must name the service"),
        ("redis://h:x", "none: 'h:x'"),
        ("redis://h:99999", "none: 'h:99999'"),
        ("redis://h?ssl_ca_cert=x", "does not know ssl_ca_cert"),
        ("rediss://h?ssl_cert_reqs=maybe", "required or none"),
        ("rediss://h?ssl_check_hostname=maybe", "true or false"),
    ],
)
def test_what_is_wrong_is_said(url, why):
    with pytest.raises(ValueError) as error:
        parse(url)

    assert why in str(error.value)


@given(st.text(min_size=1), st.text(min_size=1), st.integers(0, 99))
def test_the_broker_is_told_the_same_login_whatever_it_holds(name, word, db):
    place = Place(hosts=(("h", 1), ("g", 2)), service="s", username=name, password=word, db=db)

    for one, host in zip(place.broker.split(";"), ("h", "g"), strict=True):
        parts = url_to_parts(one)
        assert (parts.scheme, parts.hostname, parts.path) == ("sentinel", host, str(db))
        assert (parts.username, parts.password) == (name, word)


@given(st.text())
def test_a_url_of_anything_is_a_place_or_a_plain_refusal(text):
    for scheme in ("redis://", "rediss://", "unix://", "redis+sentinel://", ""):
        try:
            found = parse(scheme + text)
        except ValueError:
            continue
        assert isinstance(found.broker, str)


def test_a_place_shows_no_secret():
    assert "SECRET" not in repr(parse("redis://SECRET:SECRET@h?sentinel_password=SECRET"))
