"""The exceptions of the service, named for what a caller can do about them.

ClinvkError
├── InvalidRequest            the request itself must change
│   ├── BackendNotFound       no such backend is known
│   ├── UnsupportedParameter  this backend has nothing like the parameter
│   └── NotEnforceable        the backend cannot hold what was asked of it
├── AuthenticationFailed      no key, or a wrong one
├── PermissionDenied          a right key that may not do this
├── NotFound                  no such thing, or not the caller's
├── Conflict                  the thing is in a state that forbids it
├── RequestTooLarge
├── UnsupportedEncoding       the body is packed
├── TryLater                  the same request may work later
│   ├── QueueFull
│   ├── RateLimited           this caller asks too often
│   ├── BackendUnavailable    no live worker offers the backend
│   ├── BackendLimited        its vendor's limit is reached on every host
│   ├── SessionHostUnavailable  the one host that has the session does not
│   └── StoreUnavailable      Redis is away or full
│       └── StoreRefused      it was reached, and will not have us
│       └── StoreDamaged      what it holds of this one thing cannot be read
├── LogExpired                the events asked for have been trimmed
├── RunFailed                 carries the `Failure` of a run
└── ConfigError               the configuration is wrong; raised at start only
"""

import logging
from collections.abc import Mapping
from typing import Any


class ClinvkError(Exception):
    """Base of all; `code` is the stable word that callers see, `details` must be JSON."""

    code = "internal_error"

    def __init__(self, message: str, *, details: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.details: dict[str, Any] = dict(details or {})


class InvalidRequest(ClinvkError):
    """`field` is the path of the offending part, such as `tasks[2].prompt`."""

    code = "invalid_request"

    def __init__(self, message: str, *, field: str | None = None, issue: str | None = None) -> None:
        details: dict[str, Any] = {}
        if field is not None:
            details = {"field": field, "issue": issue or message}
        super().__init__(message, details=details)
        self.field = field


class BackendNotFound(InvalidRequest):
    code = "backend_not_found"


class UnsupportedParameter(InvalidRequest):
    code = "unsupported_parameter"


class NotEnforceable(InvalidRequest):
    code = "not_enforceable"


class AuthenticationFailed(ClinvkError):
    code = "authentication_error"


class PermissionDenied(ClinvkError):
    code = "permission_denied"


class NotFound(ClinvkError):
    code = "not_found"

    def __init__(self, kind: str, id: str) -> None:
        super().__init__(f"there is no {kind} {id!r}")


class Conflict(ClinvkError):
    code = "conflict"


class RequestTooLarge(ClinvkError):
    code = "request_too_large"


class UnsupportedEncoding(ClinvkError):
    code = "unsupported_encoding"


class TryLater(ClinvkError):
    """`retry_after_s` is an honest guess, in seconds."""

    code = "backend_unavailable"

    def __init__(self, message: str, *, retry_after_s: float, details: Mapping[str, Any] | None = None) -> None:
        super().__init__(message, details=details)
        self.retry_after_s = retry_after_s


class QueueFull(TryLater):
    code = "queue_full"


class RateLimited(TryLater):
    code = "rate_limit_exceeded"


class BackendUnavailable(TryLater):
    code = "backend_unavailable"


class BackendLimited(TryLater):
    code = "backend_limited"


class SessionHostUnavailable(TryLater):
    code = "session_host_unavailable"


class StoreUnavailable(TryLater):
    """`logged`: the log has been told of the outage already, which each of its victims need not do again."""

    code = "store_unavailable"

    def __init__(self, message: str, *, retry_after_s: float, logged: bool = False) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.logged = logged

    @property
    def level(self) -> int:
        """Of a line about what has to wait for its end."""
        return logging.DEBUG if self.logged else logging.WARNING


class StoreRefused(StoreUnavailable):
    """`why` is for who runs the service: its callers can do nothing about a login."""

    def __init__(self, message: str, *, why: str, logged: bool = False) -> None:
        super().__init__(message, retry_after_s=10, logged=logged)
        self.why = why


class StoreDamaged(StoreUnavailable):
    """No part of the service writes such a thing: an operator, another program, or another version did."""

    code = "internal_error"


class LogExpired(ClinvkError):
    code = "log_expired"


class ConfigError(ClinvkError):
    code = "config_error"
