"""What a node's process is like before the node is made."""

import os
import subprocess
import sys

import pytest


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
