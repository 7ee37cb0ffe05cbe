import os
import subprocess
import sys
from pathlib import Path

import pytest

YIELD = ('import os; from hybrid_guidance.ros.environment import yield_to_others as y; y(7); '
         "print(os.nice(0), open('/proc/self/autogroup').read() "
         "if os.path.exists('/proc/self/autogroup') else '')")


def run(new_session: bool) -> str:
    done = subprocess.run([sys.executable, '-c', YIELD], start_new_session=new_session,
                          capture_output=True, text=True, check=True)
    return done.stdout


def test_a_process_that_yields_is_nicer_by_so_much() -> None:
    assert run(True).split()[0] == str(min(os.nice(0) + 7, 19))


@pytest.mark.skipif(not Path('/proc/self/autogroup').is_file(),
                    reason='this kernel does not group processes by session')
def test_its_own_session_yields_with_it_and_a_shared_one_does_not() -> None:
    assert run(True).rstrip().endswith('nice 7')
    assert not run(False).rstrip().endswith('nice 7')
