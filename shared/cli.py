"""The `clinvk` command: finds its commands as entry points, so that one side never imports the other."""

import argparse
import difflib
import os
import sys
from collections.abc import Sequence
from importlib.metadata import entry_points, version
from pathlib import Path

import yaml

from shared import hidden, log
from shared.config_section import masked
from shared.config_sources import load
from shared.errors import ConfigError, StoreUnavailable

_HELP = """usage: clinvk COMMAND [options]

Agent CLIs (Claude Code, Codex, Gemini) as HTTP APIs.

commands:
  serve          serve the HTTP API; without redis.url everything runs on this machine
  worker         carry out runs on this host; needs redis.url
  doctor         what is missing or will go wrong on this machine; --json
  top            a live view of queue, workers and runs in the terminal; --once
  config show    the configuration in force, secrets masked
  config check   whether the configuration is right; says what is wrong and where
  version        the version

first try:       clinvk serve
an API replica:  CLINVK_REDIS_URL=redis://HOST clinvk serve
a worker host:   CLINVK_REDIS_URL=redis://HOST clinvk worker

`clinvk COMMAND --help` says more. Configuration, each over the one before: defaults, ~/.clinvk/config.yaml (or
--config FILE, or CLINVK_CONFIG), variables such as CLINVK_SERVER__PORT, options.
Exit codes: 0 ok, 1 failed, 2 wrong usage, 78 wrong configuration.
"""

EX_FAILED, EX_USAGE, EX_CONFIG, EX_INTERRUPTED = 1, 2, 78, 130


def main(argv: Sequence[str] | None = None) -> int:
    """A command is `def name(argv: Sequence[str]) -> int` with a parser of its own, in the group `clinvk.commands`."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(words[0] if words else "--help", words[1:])
    except ConfigError as error:
        log.last_words(error.message)
        return EX_CONFIG
    except StoreUnavailable as error:
        log.last_words(error.message)
        return EX_FAILED
    except KeyboardInterrupt:
        return EX_INTERRUPTED
    except SystemExit as ended:  # argparse's way
        return ended.code if isinstance(ended.code, int) else 0


def _run(command: str, words: list[str]) -> int:
    match command:
        case "-h" | "--help" | "help":
            print(_HELP, end="")
            return 0
        case "version" | "--version":
            print("clinvk", version("clinvk"))
            return 0
        case "config":
            return _config(words)
        case _:
            pass
    hidden.hide()  # they read secrets, and CLIs of this user may be about
    commands = {found.name: found for found in entry_points(group="clinvk.commands")}
    if command in commands:
        return int(commands[command].load()(words))
    near = difflib.get_close_matches(command, [*commands, "config", "version", "help"], n=1)
    hint = f"did you mean {near[0]!r}?" if near else "`clinvk --help` lists the commands"
    print(f"clinvk: unknown command {command!r}; {hint}", file=sys.stderr)
    return EX_USAGE


def _config(words: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="clinvk config",
        description="Reads the configuration as `serve` and `worker` would. `show` prints it with every default, "
        "secrets masked; `check` only says whether it is right. Wrong configuration: exit code 78.",
    )
    parser.add_argument("what", choices=["show", "check"])
    parser.add_argument("--config", type=Path, metavar="FILE", help="default: ~/.clinvk/config.yaml")
    args = parser.parse_args(words)
    loaded = load(args.config, os.environ)
    for warning in loaded.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if args.what == "show":
        print(yaml.safe_dump(masked(loaded.config), sort_keys=False, allow_unicode=True), end="")
    else:
        print(f"ok: {loaded.file or 'no file; defaults and environment only'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
