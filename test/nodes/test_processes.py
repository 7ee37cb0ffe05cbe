"""What a node's process is like before the node is made."""

import os
import signal
import subprocess
import sys

import pytest

from hybrid_guidance.supervisor import PARENT


@pytest.mark.parametrize(('chosen', 'expected'), [(None, '1'), ('3', '3')])
def test_numpy_keeps_to_one_thread_unless_the_user_chose(chosen, expected) -> None:
    environment = {key: value for key, value in os.environ.items()
                   if key != 'OPENBLAS_NUM_THREADS'}
    if chosen:
        environment['OPENBLAS_NUM_THREADS'] = chosen
    told = subprocess.run([sys.executable, '-c', (
        'import sys, os, hybrid_guidance.nodes as n; assert "numpy" not in sys.modules; '
        'print(os.environ["OPENBLAS_NUM_THREADS"])')],
        env=environment, capture_output=True, text=True, check=True, timeout=60)
    assert told.stdout.strip() == expected


def test_node_told_to_stop_while_it_loads_ends_without_a_trace() -> None:
    loading = subprocess.Popen(
        [sys.executable, '-c', (
            'import hybrid_guidance.nodes, time; print("loading", flush=True); time.sleep(60)')],
        env={**os.environ, PARENT: str(os.getpid())}, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True)
    assert loading.stdout is not None
    loading.stdout.readline()
    loading.send_signal(signal.SIGINT)
    assert loading.communicate(timeout=20)[1] == ''
    assert loading.returncode == -signal.SIGINT
