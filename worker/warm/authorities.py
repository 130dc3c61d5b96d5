"""The host's certificate authorities, so that a warm process looks one up where it needs it.

OpenSSL reads a whole bundle for each new client: 10 ms of CPU for the 140 of Debian's, and codex makes a client for each
thread. A directory with OpenSSL's hashed names gives the same authorities one by one.
"""

import functools
import os
import re
from collections.abc import Mapping
from pathlib import Path

BUNDLE = "/etc/ssl/certs/ca-certificates.crt"  # where Debian and its kin have them, once whole and once by name
FOLDER = "/etc/ssl/certs"
_HASHED = re.compile(r"[0-9a-f]{8}\.\d+")
_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----(.+?)-----END CERTIFICATE-----", re.DOTALL)

Seen = tuple[int, int] | None
"""When bundle and folder were last changed, in nanoseconds; None where one of them is not there."""


def seen(bundle: str = BUNDLE, folder: str = FOLDER) -> Seen:
    try:
        return os.stat(bundle).st_mtime_ns, os.stat(folder).st_mtime_ns  # noqa: PTH116  # for each run; pathlib doubles it
    except OSError:
        return None


def one_by_one(env: Mapping[str, str], bundle: str = BUNDLE, folder: str = FOLDER) -> dict[str, str]:
    """Variables for a process that would read `bundle`; none where `env` names other authorities, or where the folder
    lacks one of the bundle's."""
    named = env.get("SSL_CERT_FILE", bundle)
    if os.path.realpath(named) != os.path.realpath(bundle) or env.get("SSL_CERT_DIR", folder) != folder:
        return {}
    if not _complete(bundle, folder, seen(bundle, folder)):
        return {}
    return {"SSL_CERT_FILE": os.devnull, "SSL_CERT_DIR": folder}


@functools.lru_cache(maxsize=4)
def _complete(bundle: str, folder: str, seen: Seen) -> bool:
    if seen is None:
        return False
    try:
        hashed = [path for path in Path(folder).iterdir() if _HASHED.fullmatch(path.name)]
        by_name = {found for path in hashed for found in _certificates(path)[:1]}  # the name is the first one's
        whole = set(_certificates(Path(bundle)))
    except OSError:
        return False
    return bool(whole) and whole <= by_name


def _certificates(path: Path) -> list[bytes]:
    return [b"".join(found.split()) for found in _CERTIFICATE.findall(path.read_bytes())]
