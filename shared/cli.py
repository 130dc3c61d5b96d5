"""The `clinvk` command: finds its commands as entry points, so that one side never imports the other."""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib.metadata import entry_points, version
from pathlib import Path

import yaml

from shared.config import masked
from shared.config_sources import load
from shared.errors import ConfigError

_HELP = """usage: clinvk COMMAND [options]

commands:
  serve          serve the HTTP API; without redis.url everything runs on this machine
  worker         carry out runs on this host; needs redis.url
  config show    the configuration in force, secrets masked
  config check   whether the configuration is right
  version        the version

`clinvk COMMAND --help` says more. Configuration: ~/.clinvk/config.yaml, --config FILE, or CLINVK_* variables.
"""

EX_USAGE, EX_CONFIG = 2, 78


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0 ok, 1 failed, 2 usage, 78 wrong configuration."""
    words = list(sys.argv[1:] if argv is None else argv)
    command = words[0] if words else "--help"
    try:
        match command:
            case "-h" | "--help" | "help":
                print(_HELP, end="")
                return 0
            case "version" | "--version":
                print("clinvk", version("clinvk"))
                return 0
            case "config":
                return _config(words[1:])
            case _:
                for found in entry_points(group="clinvk.commands", name=command):
                    return int(found.load()(words[1:]))
    except ConfigError as error:
        print(f"clinvk: {error.message}", file=sys.stderr)
        return EX_CONFIG
    print(f"clinvk: unknown command {command!r}\n\n{_HELP}", file=sys.stderr, end="")
    return EX_USAGE


def _config(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="clinvk config")
    parser.add_argument("what", choices=["show", "check"])
    parser.add_argument("--config", type=Path, metavar="FILE")
    args = parser.parse_args(words)
    loaded = load(args.config, os.environ)
    for warning in loaded.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if args.what == "show":
        print(yaml.safe_dump(masked(loaded.config), sort_keys=False, allow_unicode=True), end="")
    else:
        print(f"ok: {loaded.file or 'no file, defaults and environment only'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
