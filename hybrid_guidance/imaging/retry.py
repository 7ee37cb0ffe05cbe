"""Trying again what may fail for a while: a source that is unplugged, a server that is not up."""

import threading
from collections.abc import Callable


def keep_trying(attempt: Callable[[], bool], ended: threading.Event,
                backoff: tuple[float, float]) -> None:
    """Call ``attempt`` until told to end, with a pause after each call.

    Args:
        attempt: works for as long as it can; returns whether it was any use.
        ended: set to end.
        backoff: s, pause after an attempt that was of use, and the longest after more and more
            that were of none; each is twice the one before.
    """
    pause = backoff[0]
    while not ended.is_set():
        if attempt():
            pause = backoff[0]
        ended.wait(pause)
        pause = min(2.0 * pause, backoff[1])
