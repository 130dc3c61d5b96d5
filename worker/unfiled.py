"""What only one process and what it starts is to read, and no disk is to hold."""

import fcntl
import os

_SEALED = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL


def unfiled(content: bytes) -> int:
    """A descriptor of it, which nobody can change; `/proc/self/fd/N` names it in a child that it is passed to."""
    fd = os.memfd_create("clinvk", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(content)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALED)
    except BaseException:
        os.close(fd)
        raise
    return fd
