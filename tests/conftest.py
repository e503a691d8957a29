"""Settings of all tests: hypothesis without deadlines, ^C in background jobs, judge prompts.

Times on a shared machine say nothing; a shell starts a background job with ^C ignored.
"""

import signal

import pytest
from hypothesis import settings

from evilspectra.judging.prompts import judge_prompts

settings.register_profile("evilspectra", deadline=None)
settings.load_profile("evilspectra")

# an ignored signal stays ignored in every process that a test starts
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _own_judge_prompts() -> None:
    """Reads the package's judge prompts, once in a process, before a test replaces its questions.

    A test file gives the same by itself as after others.
    """
    judge_prompts(None)
