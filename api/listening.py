"""The sockets that the API listens on, bound before anything else is started: a port that is taken costs nothing then."""

import errno
import os
import socket
from collections.abc import Sequence

from shared.errors import ConfigError

_WAITING = 2048  # as uvicorn has it
_ABSENT = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)


class PortTaken(Exception):
    """Another process has it; nothing is wrong with the configuration as such."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__(
            f"port {port} on {host or 'all addresses'} is in use by another process: end that one, or give another port "
            "(--port, server.port)"
        )


def bind(host: str, port: int) -> list[socket.socket]:
    """One for each address of the host; not listening yet, so that nobody is let in before all is ready.

    Raises: PortTaken; ConfigError where this machine has no such address, or this user may not have the port."""
    try:
        kinds = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise ConfigError(f"cannot listen on {host!r} (--host, server.host): {error.strerror or error}") from error
    bound: list[socket.socket] = []
    absent: OSError | None = None
    for family, kind, proto, _, address in dict.fromkeys(kinds):
        try:
            bound.append(_bound(family, kind, proto, address))
        except OSError as error:
            if error.errno in _ABSENT:  # such as a machine without IPv6, whose `localhost` has it all the same
                absent = error
                continue
            for one in bound:
                one.close()
            raise _why(error, host, port) from error
    if absent is not None and not bound:
        raise _why(absent, host, port) from absent
    return bound


def listen(sockets: Sequence[socket.socket], host: str, port: int) -> None:
    """From now on callers wait for who accepts them. Raises: PortTaken: two may bind a port before either listens."""
    try:
        for one in sockets:
            one.listen(_WAITING)
    except OSError as error:
        raise _why(error, host, port) from error


def _bound(family: int, kind: int, proto: int, address: object) -> socket.socket:
    one = socket.socket(family, kind, proto)
    try:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:  # IPv4 has a socket of its own
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        one.bind(address)  # type: ignore[arg-type]  # what getaddrinfo gave
        one.setblocking(False)
    except OSError:
        one.close()
        raise
    return one


def _why(error: OSError, host: str, port: int) -> Exception:
    """What an attempt to listen failed of."""
    if error.errno == errno.EADDRINUSE:
        return PortTaken(host, port)
    if error.errno == errno.EACCES:
        advice = "this user may not listen on it; ports from 1024 on are for all (--port, server.port)"
        return ConfigError(f"cannot listen on port {port}: {advice}")
    words = os.strerror(error.errno) if error.errno else str(error)
    return ConfigError(f"cannot listen on {host}:{port} (--host, server.host): {words}")
