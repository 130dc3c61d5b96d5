"""Small programs that behave as badly as tools may. Each tells `NAME PID` to a file before it goes on."""

import sys
from pathlib import Path


def say(name: str, file: Path) -> str:
    """Shell: the pid of this shell under this name, in one write."""
    return f"echo {name} $$ >> {file}"


def stay(name: str, file: Path) -> str:
    """Shell, for `sh -c '…'`: tells its pid and stays, whatever it is told except SIGKILL. One process."""
    return f'trap "" TERM INT HUP; {say(name, file)}; exec /bin/sleep 300'


def tool(name: str, file: Path) -> str:
    """Shell: a tool in a session of its own, in the background, with the caller's stdout."""
    return f"setsid sh -c '{stay(name, file)}' &"


def daemon(name: str, file: Path) -> str:
    """Shell: forked twice, in a session of its own, without environment, holding none of the caller's files."""
    inner = f"setsid env -i PATH=/usr/bin:/bin sh -c '{stay(name, file)}' </dev/null >/dev/null 2>&1 &"
    return f"( ( {inner} ) & );"


# A chain: each process starts the next in a session of its own and ends; argv: file, length.
CHAIN = """
import os, sys
for i in range(int(sys.argv[2])):
    if os.fork():
        os._exit(0)
    os.setsid()
    if i % 50 == 0:
        with open(sys.argv[1], "a") as file:
            file.write(f"link{i} {os.getpid()}\\n")
with open(sys.argv[1], "a") as file:
    file.write("end 0\\n")
"""

# Bounded: each process of five generations starts two more, in turn in sessions of their own, and stays.
BOMB = """
import os, signal, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
depth = int(sys.argv[2])
while depth:
    depth -= 1
    for i in range(2):
        if not os.fork():
            if i:
                os.setsid()
            break
    else:
        break
with open(sys.argv[1], "a") as file:
    file.write(f"bomb{os.getpid()} {os.getpid()}\\n")
signal.pause()
"""


def python(source: str, *args: object) -> tuple[str, ...]:
    return (sys.executable, "-S", "-E", "-c", source, *map(str, args))
