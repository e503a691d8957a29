"""For all tests: hypothesis sets no deadline, since times on a shared machine say nothing."""

from hypothesis import settings

settings.register_profile("evilspectra", deadline=None)
settings.load_profile("evilspectra")
