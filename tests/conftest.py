"""For all tests: how long a generated case takes is no verdict, and an interrupt is one wherever they were started."""

import signal

from hypothesis import settings

settings.register_profile("calm", deadline=None)
settings.load_profile("calm")

# A shell that starts them in its background has it ignored, and every process below would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
