"""What codex's own configuration says of its login: a provider may take its key from a variable that it names."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec


class Provider(msgspec.Struct, frozen=True):
    """The one that runs are sent to. `variable`: which one holds its key; None: it needs none, or holds it itself."""

    name: str
    variable: str | None = None


def provider(home: Path) -> Provider | None:
    """From `config.toml` in codex's home; None where codex logs in in its own way.

    Raises: ValueError for a file that cannot be read, with what is wrong with it."""
    file = home / "config.toml"
    try:
        found: Mapping[str, Any] = tomllib.loads(file.read_text())
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{file} is not valid TOML: {error}") from error
    profile = _table(_table(found, "profiles"), str(found.get("profile", "")))
    name = profile.get("model_provider") or found.get("model_provider")
    about = _table(_table(found, "model_providers"), str(name))
    if not about or about.get("requires_openai_auth"):
        return None
    return Provider(str(name), about.get("env_key"))


def _table(of: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = of.get(name)
    return found if isinstance(found, dict) else {}
