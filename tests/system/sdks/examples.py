"""Runs an example of a document as it is printed; only the service's address is put in its place."""

import re
import shutil
import subprocess
from pathlib import Path

from tests.system.sdks.clients import ENV, SDKS, there, there_is

PRINTED = re.compile(r"http://(?:localhost|127\.0\.0\.1):(?:8080|8000)\b")


def run_example(code: str, kind: str, runtime: str, base: str, folder: Path, **env: str) -> tuple[int, str]:
    """The exit code and what it printed. `kind`: py, mjs, sh or go; `runtime`: whose packages it is to find."""
    code = PRINTED.sub(base, code)
    match kind:
        case "py":
            command = [str(there(SDKS / runtime / "bin" / "python", runtime)), _written(folder / "example.py", code)]
        case "mjs":
            there(SDKS / "node" / "node_modules", "the Node SDKs")
            # Node looks for modules beside the program, and beside the folders above it.
            (folder / "node_modules").symlink_to(SDKS / "node" / "node_modules")
            command = [there_is("node"), _written(folder / "example.mjs", code)]
        case "go":
            command = _built(code, folder)
        case _:
            if "curl " in code:
                there_is("curl")
            path = str(SDKS / runtime / "bin") + ":" + ENV["PATH"]
            command, env = ["bash", "-euc", code], {"PATH": path, **env}
    done = subprocess.run(
        command,
        env={**ENV, "HOME": str(folder), **env},
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=100,
        check=False,
    )
    return done.returncode, done.stdout.decode()


def _written(path: Path, code: str) -> str:
    path.write_text(code)
    return str(path)


def _built(code: str, folder: Path) -> list[str]:
    """What does not compile prints why, and fails."""
    there(SDKS / "go" / "client", "go-openai")
    there_is("go")
    for name in ("go.mod", "go.sum"):
        shutil.copyfile(SDKS / "go" / name, folder / name)
    _written(folder / "main.go", code)
    cache = SDKS / "cache"
    env = f"GOPATH={cache / 'gopath'} GOCACHE={cache / 'go'} GOPROXY=off GOTOOLCHAIN=local GOFLAGS=-mod=mod".split()
    return ["env", *env, "go", "run", "."]
