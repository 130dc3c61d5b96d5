"""Why a CLI could not be started, in words that say what to do."""

import errno
import os

from shared.errors import ClinvkError, InvalidRequest, TryLater
from worker.backends.base import Launch


class StartFailed(TryLater):
    """The CLI could not be started on this host; the text says why."""

    code = "backend_unavailable"


def refusal(error: OSError | ValueError, launch: Launch) -> ClinvkError:
    name = launch.argv[0]
    if not isinstance(error, OSError):
        return InvalidRequest(f"{name!r} cannot be given these options: {error}")
    match error.errno:
        case errno.E2BIG:
            size = sum(len(os.fsencode(word)) + 1 for word in launch.argv)
            return InvalidRequest(f"the command line for {name!r} is too long for this host ({size} bytes)")
        case errno.ENOENT if not os.path.isdir(launch.cwd):  # noqa: PTH112  # a string from the launch
            text = f"its working directory {launch.cwd!r} is gone"
        case errno.ENOENT:
            text = "there is no such file, or not the interpreter that its first line names"
        case errno.EACCES | errno.EPERM:
            text = f"the worker's user may not execute it, or not enter {launch.cwd!r}"
        case errno.ENOEXEC:
            text = "it is no program: neither a known format nor a first line with #!"
        case errno.EMFILE | errno.ENFILE:
            text = "the worker has no file descriptors left (ulimit -n)"
        case errno.EAGAIN | errno.ENOMEM:
            text = "the host has no processes or memory left for it"
        case errno.ENOSPC | errno.EDQUOT:
            text = "the disk of CLINVK_HOME is full"
        case _:
            text = error.strerror or str(error)
    return StartFailed(f"cannot start {name!r}: {text}", retry_after_s=30)
