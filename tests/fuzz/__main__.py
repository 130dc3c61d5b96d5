"""`make fuzz MINUTES=n`: each target in turn for its share of the time; a table of cases, time and finds."""

import sys
import time

from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.fuzz.targets import REFUSALS, TARGETS

_ROUND = 100
_SHRINK_S = 60.0  # for making a find small


def fuzz(name: str, limit_s: float) -> tuple[int, list[str]]:
    """How many cases were tried, and what was found, smallest first."""
    strategy, check = TARGETS[name]
    cases, finds, begun = 0, [], time.monotonic()
    end = begun + limit_s
    while time.monotonic() < end and not finds:

        @seed(time.time_ns())
        @settings(
            max_examples=_ROUND,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate, Phase.shrink],
        )
        @given(strategy)
        def one(value: object) -> None:
            nonlocal cases, end
            if time.monotonic() > end:
                return
            cases += 1
            try:
                check(value)
            except REFUSALS:
                pass
            except Exception:
                if end <= begun + limit_s:
                    end = time.monotonic() + _SHRINK_S
                raise

        try:
            one()
        except Exception as error:  # noqa: BLE001  # it is what is looked for
            finds.append(f"{name}: {error!r}\n" + "\n".join(getattr(error, "__notes__", [])))
    return cases, finds


def main() -> int:
    minutes = float(sys.argv[1]) if len(sys.argv) > 1 else 5.0
    share_s = minutes * 60 / len(TARGETS)
    finds: list[str] = []
    print("| what | cases | seconds | finds |\n|---|---|---|---|")
    for name in TARGETS:
        begun = time.monotonic()
        cases, found = fuzz(name, share_s)
        finds += found
        print(f"| {name} | {cases:,} | {time.monotonic() - begun:.0f} | {len(found)} |", flush=True)
    print("\n".join(finds), file=sys.stderr)
    return 1 if finds else 0


if __name__ == "__main__":
    sys.exit(main())
