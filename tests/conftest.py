"""For all tests: how long a generated case takes is no verdict, and an interrupt is one wherever they were started."""

import signal

from hypothesis import settings

settings.register_profile("quick", deadline=None, max_examples=40)
settings.register_profile("thorough", deadline=None, max_examples=200)  # of `make test`
settings.load_profile("quick")

# A shell that starts them in its background has it ignored, and every process below would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
