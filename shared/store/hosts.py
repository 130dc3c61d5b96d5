"""The live fleet: worker instances under a short-lived announcement."""

from collections.abc import Mapping, Sequence
from functools import partial

import msgspec

from shared import names
from shared.host import BackendState, Instance, Readiness, Vitals
from shared.redis import Arg, Scripts, text, texts
from shared.store.reading import each, reading

_decode = msgspec.json.Decoder(Instance).decode
_vitals = msgspec.json.Decoder(Vitals).decode
_encode = msgspec.json.Encoder().encode


class Hosts:
    def __init__(self, scripts: Scripts) -> None:
        self._scripts = scripts
        self._redis = scripts.redis

    async def announce(self, instance: Instance, slots: Mapping[str, int], *, life_s: float) -> None:
        """`slots`: queue -> how many runs of it the instance carries at once."""
        args: list[Arg] = [instance.id, _encode(instance), int(life_s * 1000)]
        for queue, count in slots.items():
            args += [queue, count]
        await self._scripts("announce", *args)

    async def retire(self, instance_id: str) -> None:
        await self._scripts("retire", instance_id)

    async def drained(self, host: str) -> bool:
        """Whether an operator has taken the host out of service; it stays so through restarts."""
        return bool(await self._redis("SISMEMBER", names.DRAINED, host))

    async def all_drained(self) -> set[str]:
        return set(texts(await self._redis("SMEMBERS", names.DRAINED)))

    async def drain(self, host: str, *, on: bool) -> None:
        await self._redis("SADD" if on else "SREM", names.DRAINED, host)

    async def tell(self, api: str, vitals: Vitals, *, life_s: float) -> None:
        """What an API process uses; workers tell theirs with their announcement."""
        await self._redis("SET", names.vitals(api), _encode(vitals), "PX", int(life_s * 1000))

    async def apis(self) -> dict[str, Vitals]:
        """Of the live API processes, by id."""
        ids = texts(await self._redis("ZRANGE", names.APIS, 0, -1))
        rows = await self._redis("MGET", *[names.vitals(i) for i in ids]) if ids else []
        found = [(i, each(i, partial(_vitals, row))) for i, row in zip(ids, rows, strict=True) if row is not None]
        return {i: vitals for i, vitals in found if vitals is not None}

    async def list(self) -> list[Instance]:
        """The live instances, by host and id."""
        ids = texts(await self._redis("ZRANGE", names.INSTANCES, 0, -1))
        rows = await self._redis("MGET", *[names.instance(i) for i in ids]) if ids else []
        found = [each(i, partial(_decode, row)) for i, row in zip(ids, rows, strict=True) if row is not None]
        return sorted((one for one in found if one is not None), key=lambda i: (i.host, i.id))

    async def bound(self) -> dict[str, int]:
        """How many runs have yet to start that must go to one host, by queue."""
        flat = await self._redis("HGETALL", names.BOUND)
        with reading("the bound runs"):
            return {text(flat[i]): int(flat[i + 1]) for i in range(0, len(flat), 2)}


def offers(instances: Sequence[Instance], backend: str) -> list[tuple[Instance, BackendState]]:
    """The instances that can run a backend now."""
    return [
        (instance, state)
        for instance in instances
        if not instance.draining
        for state in instance.backends
        if state.name == backend and state.readiness is Readiness.READY and state.slots > 0
    ]
