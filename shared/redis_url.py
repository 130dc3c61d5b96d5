"""Where Redis is and how to get in, from one URL that serves every user of it.

redis://USER:PASSWORD@HOST:PORT/DB          rediss:// the same by TLS
redis+sentinel://USER:PASSWORD@HOST:PORT,HOST:PORT/SERVICE/DB    rediss+sentinel:// the same by TLS
unix:///PATH?db=DB                          redis+socket:// means the same, as Celery writes it

The query may hold `ssl_ca_certs`, `ssl_certfile`, `ssl_keyfile`, `ssl_cert_reqs` (required, none),
`ssl_check_hostname` (true, false), `username`, `password`, `db`, and for the sentinels themselves `sentinel_username` and `sentinel_password`.
"""

from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit

import msgspec

SCHEMES = ("redis://", "rediss://", "unix://", "redis+socket://", "redis+sentinel://", "rediss+sentinel://")

_TLS = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs", "ssl_check_hostname")
_LOGINS = ("username", "password", "sentinel_username", "sentinel_password")
_PORT, _SENTINEL_PORT = 6379, 26379


class Place(msgspec.Struct, frozen=True):
    """`hosts` are Redis, or with a `service` the sentinels that know its master. A `path` is a unix socket."""

    hosts: tuple[tuple[str, int], ...] = ()
    path: str = ""
    service: str = ""
    db: int = 0
    username: str | None = None
    password: str | None = None
    tls: dict[str, Any] | None = None  # options of redis-py, None: no TLS
    sentinel_username: str | None = None
    sentinel_password: str | None = None

    def __repr__(self) -> str:  # no secret
        return f"Place({self.shown})"

    @property
    def shown(self) -> str:
        """For people, without secrets."""
        where = self.path or ",".join(f"{host}:{port}" for host, port in self.hosts)
        return f"{where} (sentinels of {self.service})" if self.service else where

    @property
    def login(self) -> dict[str, Any]:
        """What each connection to Redis itself is given."""
        return {"db": self.db, "username": self.username, "password": self.password}

    @property
    def sentinel_login(self) -> dict[str, Any]:
        return {"username": self.sentinel_username, "password": self.sentinel_password}

    @property
    def broker(self) -> str:
        """The URL for kombu, which takes TLS and sentinels' logins beside it."""
        name, word = quote(self.username or "", safe=""), quote(self.password or "", safe="")
        login = f"{name}:{word}@" if name or word else ""
        if self.path:
            return f"redis+socket://{login}{self.path}?virtual_host={self.db}"
        kind = "sentinel" if self.service else "redis"
        return ";".join(f"{kind}://{login}{_bracketed(host)}:{port}/{self.db}" for host, port in self.hosts)


def parse(url: str) -> Place:
    """Raises: ValueError that says what is wrong, without the URL."""
    scheme, _, rest = url.partition("://")
    query = dict(parse_qsl(urlsplit("//" + rest).query))
    unknown = set(query) - {*_TLS, *_LOGINS, "db"}
    if scheme + "://" not in SCHEMES or unknown:
        what = f"does not know {', '.join(sorted(unknown))}" if unknown else f"must begin with {', '.join(SCHEMES)}"
        raise ValueError(what)
    main = rest.partition("?")[0]
    if scheme in ("unix", "redis+socket"):
        login, _, path = main.rpartition("@")
        name, _, word = login.partition(":")
        return Place(path=unquote(path), db=_db(query.get("db")), **_login(name, word, query))
    login, _, place = main.rpartition("@")
    name, _, word = login.partition(":")
    hosts, _, path = place.partition("/")
    parts = [unquote(part) for part in path.split("/") if part]
    service = ""
    if scheme.endswith("+sentinel"):
        if not parts:
            raise ValueError("must name the service that the sentinels watch: .../SERVICE/DB")
        service = parts.pop(0)
    if len(parts) > 1:
        raise ValueError(f"has too many parts behind its hosts: {'/'.join(parts)!r}")
    found = tuple(_host(one, _SENTINEL_PORT if service else _PORT) for one in hosts.split(","))
    if len(found) > 1 and not service:
        raise ValueError("may name several hosts only as redis+sentinel://")
    return Place(
        hosts=found,
        service=service,
        db=_db(parts[0] if parts else query.get("db")),
        tls=_tls(query) if scheme.startswith("rediss") else None,
        sentinel_username=query.get("sentinel_username"),
        sentinel_password=query.get("sentinel_password"),
        **_login(name, word, query),
    )


def _tls(query: dict[str, str]) -> dict[str, Any]:
    """Nobody is believed without a certificate, unless the URL says so."""
    found: dict[str, Any] = {name: query[name] for name in _TLS[:3] if name in query}
    required = query.get("ssl_cert_reqs", "required").lower().removeprefix("cert_")
    if required not in ("required", "none"):
        raise ValueError("ssl_cert_reqs must be required or none")
    check = query.get("ssl_check_hostname", "true").lower()
    if check not in ("true", "false"):
        raise ValueError("ssl_check_hostname must be true or false")
    return found | {"ssl_cert_reqs": required, "ssl_check_hostname": check == "true" and required == "required"}


def _host(text: str, port: int) -> tuple[str, int]:
    try:
        parts = urlsplit("//" + text)
        return unquote(parts.hostname or "localhost"), parts.port or port
    except ValueError as error:
        raise ValueError(f"has a host that is none: {text!r}") from error


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _db(text: str | None) -> int:
    if text is None:
        return 0
    if not text.isdecimal():
        raise ValueError(f"has a database that is no number: {text!r}")
    return int(text)


def _login(name: str, word: str, query: dict[str, str]) -> dict[str, Any]:
    return {
        "username": unquote(name) or query.get("username"),
        "password": unquote(word) or query.get("password"),
    }
