"""Random ids with a prefix that says what they name."""

import base64
import secrets


def new_id(kind: str) -> str:
    """Such as `run_4k2m…`: 120 bits of chance in 24 characters, safe in URLs, file names and Redis names."""
    return kind + "_" + base64.b32hexencode(secrets.token_bytes(15)).decode().lower()
