"""The table of the warm ways."""

from collections.abc import Mapping

from worker.warm.claude import ClaudeDriver
from worker.warm.codex import CodexDriver
from worker.warm.driver import Driver
from worker.warm.gemini import GeminiDriver


def create_drivers() -> Mapping[str, Driver]:
    drivers: tuple[Driver, ...] = (ClaudeDriver(), CodexDriver(), GeminiDriver())
    return {driver.name: driver for driver in drivers}
