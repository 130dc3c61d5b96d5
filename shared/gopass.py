"""Asks gopass for a secret: the one child process that reading keys needs."""

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping

from shared.errors import ConfigError
from shared.log import mask

LIMIT_S = 15.0
_MOST_BYTES = 1 << 20


def show(path: str, environ: Mapping[str, str], limit_s: float = LIMIT_S) -> str:
    """What `gopass show -o PATH` prints. It blocks for `limit_s` at most; whoever has a loop asks in a thread.

    Raises: ConfigError that says what gopass said.
    """
    name = "server.api_keys_gopass_path"
    if path.startswith("-") or "\0" in path:
        raise ConfigError(f"{name}: {path!r} is no gopass entry")
    program = shutil.which("gopass", path=environ.get("PATH"))
    if program is None:
        raise ConfigError(f"{name}: there is no gopass on PATH")
    try:
        child = subprocess.Popen(
            [program, "show", "-o", path],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # Its own settings and its agent's, but none of this service's secrets.
            env={key: value for key, value in environ.items() if not key.startswith("CLINVK_")},
            start_new_session=True,
        )
    except OSError as error:
        raise ConfigError(f"{name}: cannot start {program}: {error.strerror}") from None
    try:
        out, said = child.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        raise ConfigError(
            f"{name}: gopass did not answer within {limit_s:g} s; does it ask for a passphrase? It has no terminal here"
        ) from None
    finally:
        if child.poll() is None:
            _end(child)
    if child.returncode != 0:
        words = " ".join(said.decode(errors="replace").split())
        raise ConfigError(
            f"{name}: gopass show {path!r} failed (exit code {child.returncode}): {mask(words)[:300] or 'it said nothing'}"
        )
    if len(out) > _MOST_BYTES:
        raise ConfigError(f"{name}: {path!r} holds more than {_MOST_BYTES} bytes")
    try:
        return out.decode()
    except UnicodeDecodeError:
        raise ConfigError(f"{name}: {path!r} is not text") from None


def _end(child: "subprocess.Popen[bytes]") -> None:
    """With the helpers that it started; one that left its session may hold the pipes, so they are not waited for."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    for pipe in (child.stdout, child.stderr):
        if pipe is not None:
            pipe.close()
