"""What a long-lived process asks of Python's garbage collector."""

import gc


def settle() -> None:
    """Call it once, when the start is over. What is there now stays for good and is not looked at again, and looks at
    the rest come seldom: at 10,000 events/s they were worth a third of the delay.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
