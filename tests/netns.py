"""Two hosts with a road between them, as network namespaces of this machine: what crosses the road can vanish in silence."""

import ctypes
import os
import secrets
import shutil
import subprocess
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import pytest

_CLONE_NEWNET = 0x40000000
Done = TypeVar("Done")


class Road:
    """`near` and `far` are names of namespaces, at these addresses; nothing of the machine's own network is touched."""

    NEAR, FAR = "10.213.1.2", "10.213.2.2"

    def __init__(self) -> None:
        mark = "clinvk" + secrets.token_hex(3)
        self.near, self.far, self._between = mark + "n", mark + "f", mark + "r"
        for name in (self.near, self.far, self._between):
            _ip("netns", "add", name)
        for number, name in ((1, self.near), (2, self.far)):
            peer = ["peer", "name", f"to{number}", "netns", self._between]
            _ip("link", "add", "name", "road", "netns", name, "type", "veth", *peer)
            _ip("-n", name, "addr", "add", f"10.213.{number}.2/24", "dev", "road")
            _ip("-n", self._between, "addr", "add", f"10.213.{number}.1/24", "dev", f"to{number}")
            for where, link in ((name, "lo"), (name, "road"), (self._between, f"to{number}")):
                _ip("-n", where, "link", "set", link, "up")
            _ip("-n", name, "route", "add", "default", "via", f"10.213.{number}.1")
        _ip("netns", "exec", self._between, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")

    def cut(self) -> None:
        """From now on neither hears of the other: no packet, no end of a connection, no word that it cannot be reached."""
        for address in (self.NEAR, self.FAR):
            _ip("-n", self._between, "route", "add", "blackhole", address + "/32")

    def mend(self) -> None:
        for address in (self.NEAR, self.FAR):
            _ip("-n", self._between, "route", "del", "blackhole", address + "/32")

    def close(self) -> None:
        for name in (self.near, self.far, self._between):
            subprocess.run(["ip", "netns", "del", name], check=False, timeout=20)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True, timeout=20)


def road() -> Road:
    """Skips where this machine has no such thing."""
    if shutil.which("ip") is None:
        message = "`ip` is missing (iproute2): hosts of the test's own cannot be made"
        (pytest.fail if os.environ.get("CLINVK_REQUIRE") else pytest.skip)(message)
    try:
        return Road()
    except subprocess.CalledProcessError as error:
        pytest.skip(f"network namespaces may not be made here: {error.stderr.strip()}")


def inside(namespace: str, do: Callable[[], Done]) -> Done:
    """What is done there, and the processes, threads and sockets that come of it, are there."""
    result: list[Any] = []

    def work() -> None:
        try:
            with open(f"/run/netns/{namespace}", "rb") as file:
                if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), _CLONE_NEWNET) != 0:
                    raise OSError(ctypes.get_errno(), "setns")
            result.extend((True, do()))
        except BaseException as error:  # noqa: BLE001  # raised by who asked
            result.extend((False, error))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if not result[0]:
        raise result[1]
    return result[1]  # type: ignore[no-any-return]  # what `do` gave
