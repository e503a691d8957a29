"""A worker: a process that executes tasks in turn and keeps the base between them.

It ends when its driver says so, and also when the driver is gone for any reason: training then
stops after the current step, with the state saved.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from multiprocessing.connection import Connection

from evilspectra.errors import Interrupted
from evilspectra.executors.stages import carry_out_elsewhere
from evilspectra.training.signals import obey_the_driver


def serve(connection: Connection, environment: dict[str, str]) -> None:
    """Takes tasks from the driver and sends reports until the driver sends None or is gone."""
    os.environ.update(environment)  # before torch looks for devices
    obey_the_driver()
    threading.Thread(target=_follow_the_driver, daemon=True).start()
    from evilspectra.model.reuse import Loaded

    loaded = Loaded()
    try:
        while (task := connection.recv()) is not None:
            connection.send(carry_out_elsewhere(task, loaded))
    except (EOFError, BrokenPipeError, ConnectionResetError, Interrupted, KeyboardInterrupt):
        return


def _follow_the_driver() -> None:
    """Sends this process SIGTERM once its driver has gone."""
    driver = multiprocessing.parent_process()
    if driver is not None:
        driver.join()
        # a run that trains saves its state; anything else can end at once
        os.kill(os.getpid(), signal.SIGTERM)
