"""Random ids with a prefix that says what they name."""

import secrets

_ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyz"


def new_id(kind: str) -> str:
    """Such as `run_4k2m…`: 124 bits of chance in 24 characters, safe in URLs, file names and Redis names."""
    return kind + "_" + "".join(secrets.choice(_ALPHABET) for _ in range(24))
