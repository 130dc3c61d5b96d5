"""The table of the warm ways."""

from collections.abc import Mapping

from worker.warm.codex import CodexDriver
from worker.warm.driver import Driver
from worker.warm.gemini import GeminiDriver


def create_drivers() -> Mapping[str, Driver]:
    drivers: tuple[Driver, ...] = (CodexDriver(), GeminiDriver())
    return {driver.name: driver for driver in drivers}
