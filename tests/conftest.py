"""Settings of all tests: hypothesis without deadlines, and ^C also in background jobs.

Times on a shared machine say nothing; a shell starts a background job with ^C ignored.
"""

import signal

from hypothesis import settings

settings.register_profile("evilspectra", deadline=None)
settings.load_profile("evilspectra")

# an ignored signal stays ignored in every process that a test starts
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
