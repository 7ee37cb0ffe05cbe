"""Calls in a process of their own: results, errors, ends."""

import os
import time

import numpy as np
import pytest

from hybrid_guidance.worker import Worker, WorkerError


def finished(worker: Worker) -> Worker:
    while not worker.is_done():
        time.sleep(0.01)
    return worker


def test_result_comes_from_another_process() -> None:
    assert finished(Worker(os.getpid)).result() != os.getpid()
    assert np.array_equal(finished(Worker(np.cross, [1, 0, 0], [0, 1, 0])).result(), [0, 0, 1])


def test_words_of_an_error_come_back() -> None:
    with pytest.raises(WorkerError, match='not_there'):
        finished(Worker(os.listdir, '/not_there')).result()


def test_process_that_dies_or_takes_too_long_is_an_error() -> None:
    with pytest.raises(WorkerError, match='status 3'):
        finished(Worker(os._exit, 3)).result()
    worker = Worker(time.sleep, 600.0, patience=0.2)
    with pytest.raises(WorkerError, match='status -9'):
        finished(worker).result()
