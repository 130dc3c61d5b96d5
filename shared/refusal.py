"""What an error on the way to Redis means: that it was not reached, or that it was and will not have us."""

import ssl
from collections.abc import Iterator

from redis.exceptions import (
    AuthenticationError,
    InvalidResponse,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError


def refusal(error: BaseException) -> str | None:
    """Why the Redis that was reached refuses, in words for who runs it; None where it was not reached, or did not refuse.

    What it says itself holds no password."""
    for found in _with_causes(error):
        match found:
            case AuthenticationError():
                return f"it refuses the login ({_said(found)})"
            case NoPermissionError():
                return f"it does not let this user do what is needed ({_said(found)}); docs/redis.md lists that"
            case InvalidResponse():
                return "what answers there does not speak as Redis does"
            case ssl.SSLCertVerificationError():
                return f"its certificate is not accepted ({found.verify_message})"
            case ssl.SSLError():
                return f"TLS fails ({_said(found)})"
            case ReadOnlyError() | OutOfMemoryError():
                return None  # which pass
            case ResponseError() if _in_script(found):
                return f"it does not let this user do what is needed ({_said(found)}); docs/redis.md lists that"
            case ResponseError() if isinstance(error, RedisConnectionError):  # to what a connection begins with
                return f"it refuses the connection ({_said(found)})"
            case _:
                pass
    return None


def _with_causes(error: BaseException) -> Iterator[BaseException]:
    """The client library wraps what Redis says to a new connection."""
    found: BaseException | None = error
    for _ in range(5):
        if found is None:
            return
        yield found
        found = found.__cause__ or found.__context__


def _in_script(error: ResponseError) -> bool:
    """Redis has no code for what a user may not do in a script."""
    return str(error).startswith("ACL failure in script")


def _said(error: BaseException) -> str:
    return str(error).strip().rstrip(".")[:200]
