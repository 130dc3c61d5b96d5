"""For all tests: how long a generated case takes is no verdict."""

from hypothesis import settings

settings.register_profile("calm", deadline=None)
settings.load_profile("calm")
