"""Who follows which run: API processes under a lease, so that a dead one does not count."""

from shared.redis import Scripts, text, texts
from shared.run import Status
from shared.store.reading import reading


class Followers:
    def __init__(self, scripts: Scripts, api: str, lease_s: float = 10.0) -> None:
        self._scripts = scripts
        self._api = api
        self._lease_ms = int(lease_s * 1000)

    async def add(self, run_id: str) -> tuple[Status, int] | None:
        """This process follows the run from now on. Returns its status and last sequence, None for no such run."""
        reply = await self._scripts("follow", run_id, self._api)
        with reading(run_id):
            return (Status(text(reply[0])), int(reply[1])) if reply else None

    async def remove(self, run_id: str) -> bool:
        """Returns whether a living run that needs a follower has none left."""
        return bool(await self._scripts("unfollow", run_id, self._api))

    async def renew(self) -> set[str]:
        """Prolongs this process' lease. Returns the runs that the store thinks it follows."""
        return set(texts(await self._scripts("breathe", self._api, self._lease_ms)))

    async def end(self) -> None:
        await self._scripts("leave_api", self._api)
