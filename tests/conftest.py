"""For all tests: hypothesis sets no deadline, since times on a shared machine say nothing; ^C
works, which a job in the background is started without.
"""

import signal

from hypothesis import settings

settings.register_profile("evilspectra", deadline=None)
settings.load_profile("evilspectra")

if (
    signal.getsignal(signal.SIGINT) == signal.SIG_IGN
):  # what is ignored would be in every process that a test starts
    signal.signal(signal.SIGINT, signal.default_int_handler)
