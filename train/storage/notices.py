"""Tells the user what reading waits for, now and then."""

import logging
import threading
import time
from typing import Final

INTERVAL_SECONDS: Final = 10.0

logger = logging.getLogger(__name__)
_lock = threading.Lock()
_last_seconds: list[float] = []


def notice(text: str) -> None:
    """Log a warning, unless this process logged one within the last ten seconds.

    A store that fails makes every thread that reads from it wait: one line tells it all.
    """
    with _lock:
        now = time.monotonic()
        if _last_seconds and now - _last_seconds[0] < INTERVAL_SECONDS:
            return
        _last_seconds[:] = [now]
    logger.warning("%s", text)
