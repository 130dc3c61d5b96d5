"""The API keys in force: whom a key speaks for, what it may do, and how it is found without telling anything by time."""

import hashlib
import hmac
import posixpath
import secrets
from collections.abc import Iterable

import msgspec

from shared.config import ApiKey
from shared.errors import PermissionDenied
from shared.key_sources import digest
from shared.run import RunSpec


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """An API key, of which only the hash is kept, the tenant that it speaks for, and its limits."""

    sha256: bytes
    tenant: str
    admin: bool = False
    rps: float | None = None
    burst: int | None = None
    window: int | None = None  # how many runs it may have at once
    backends: frozenset[str] = frozenset()  # none: all
    workdirs: tuple[str, ...] = ()  # none: wherever the worker allows
    extra: bool = True  # whether its requests may carry flags of the CLIs

    @staticmethod
    def of(entry: ApiKey) -> "Key":
        """An unnamed key is a tenant of its own."""
        sha256 = digest(entry.key)
        return Key(
            sha256=sha256,
            tenant=entry.name or "key-" + sha256.hex()[:12],
            admin=entry.role == "admin",
            rps=entry.rate_limit_rps,
            burst=entry.rate_limit_burst,
            window=entry.max_concurrent_runs,
            backends=frozenset(entry.allowed_backends),
            workdirs=tuple(entry.allowed_workdir_prefixes),
            extra=entry.allow_extra_flags,
        )

    @property
    def id(self) -> str:
        """Tells keys apart where people look: logs, usage, the audit log. Nothing can be done with it."""
        return "key-" + self.sha256.hex()[:12]

    def may_use(self, backend: str) -> bool:
        return not self.backends or backend in self.backends

    def granted(self, spec: RunSpec) -> RunSpec:
        """The run with what its worker must hold. Raises: PermissionDenied, for what this key may not ask for."""
        if not self.may_use(spec.backend):
            raise PermissionDenied(
                f"this key may not use the backend {spec.backend!r}; it may use {', '.join(sorted(self.backends))}",
                details={"field": "backend", "backend": spec.backend},
            )
        if spec.extra and not self.extra:
            raise PermissionDenied("this key may not pass flags of the CLIs (`extra`)", details={"field": "extra"})
        for field, path in (
            ("workdir", spec.workdir),
            *((f"add_dirs[{i}]", one) for i, one in enumerate(spec.add_dirs)),
        ):
            # The worker asks again with links resolved; here it is a matter of a clear answer at once.
            if path is not None and self.workdirs and not any(_within(path, prefix) for prefix in self.workdirs):
                raise PermissionDenied(
                    f"this key may not use the {field} {path!r}; it may use what is below {', '.join(self.workdirs)}",
                    details={"field": field},
                )
        return msgspec.structs.replace(spec, key=self.id, key_window=self.window, workdir_prefixes=self.workdirs)


class Keyring:
    """`required` from its first key on: a service that had keys never turns into one that needs none."""

    def __init__(self, keys: Iterable[Key]) -> None:
        self._secret = secrets.token_bytes(32)
        self._found: dict[bytes, Key] = {}
        self.required = False
        self.replace(keys)

    @property
    def all(self) -> dict[str, Key]:
        """By their ids."""
        return {key.id: key for key in self._found.values()}

    def replace(self, keys: Iterable[Key]) -> None:
        self._found = {self._place(key.sha256): key for key in keys}
        self.required = self.required or bool(self._found)

    def find(self, value: bytes) -> Key | None:
        """The key whose text this is. It takes as long for one key as for a thousand, for a near miss as for a far one:
        where to look is known only with a secret of this process."""
        sha256 = hashlib.sha256(value).digest()
        found = self._found.get(self._place(sha256))
        return found if found is not None and hmac.compare_digest(found.sha256, sha256) else None

    def _place(self, sha256: bytes) -> bytes:
        return hmac.digest(self._secret, sha256, "sha256")


def _within(path: str, prefix: str) -> bool:
    real, top = posixpath.normpath(path), posixpath.normpath(prefix)
    return real == top or real.startswith(top.rstrip("/") + "/")
