"""One call in a process of its own: seconds of a processor that no node may wait for."""

import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Generic, TypeVar

import cv2

from hybrid_guidance.supervisor import PARENT, end_with_parent

T = TypeVar('T')


class WorkerError(Exception):
    """A call that came to nothing; the message says why."""


class Worker(Generic[T]):
    """Calls a function elsewhere, with what is left of the processors.

    Args:
        function: of a module.
        arguments: that can be pickled, as can its result.
        patience: seconds after which it is ended.
    """

    def __init__(self, function: Callable[..., T], *arguments: Any,
                 patience: float = 180.0) -> None:
        self._folder = TemporaryDirectory(prefix='hybrid-guidance-')
        self._end = time.monotonic() + patience
        source, self._result = (Path(self._folder.name) / name for name in ('call', 'result'))
        source.write_bytes(pickle.dumps((function, arguments)))
        self._process = subprocess.Popen(
            [sys.executable, '-c', f'from {__name__} import work; work()', str(source),
             str(self._result)], env={**os.environ, PARENT: str(os.getpid())})

    def is_done(self) -> bool:
        """Tell whether ``result`` has something to say; end a call that takes too long."""
        if self._process.poll() is None and time.monotonic() > self._end:
            self._process.kill()
            self._process.wait()
        return self._process.poll() is not None

    def result(self) -> T:
        """Return what the function returned.

        Raises:
            WorkerError: it raised, with its words, or its process ended otherwise.
        """
        try:
            result, words = pickle.loads(self._result.read_bytes())
        except Exception:
            raise WorkerError('its process ended with status '
                              f'{self._process.returncode}') from None
        finally:
            self._folder.cleanup()
        if words:
            raise WorkerError(words)
        return result  # type: ignore[no-any-return]


def work() -> None:
    """Call what is in the first file named, and write what comes of it to the second."""
    end_with_parent()
    os.nice(10)
    cv2.setNumThreads(1)
    source, target = map(Path, sys.argv[1:3])
    try:
        # Written by the process that started this one, in a folder that is nobody else's.
        function, arguments = pickle.loads(source.read_bytes())
        outcome = function(*arguments), ''
    except Exception as error:
        outcome = None, str(error) or type(error).__name__
    target.write_bytes(pickle.dumps(outcome))
