import os
import subprocess
import sys
from pathlib import Path

import pytest

YIELD = ('import os; from hybrid_guidance.ros.environment import yield_to_others as y; y(7); '
         "print(os.nice(0), open('/proc/self/autogroup').read() "
         "if os.path.exists('/proc/self/autogroup') else '')")
MANY = """
import array, resource, threading
from hybrid_guidance.ros.environment import keep_memory
{keep}
def images():
    image = bytes(2 << 20)
    for round in range(60):
        if round == 10:
            counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
        copies = [array.array('B', image) for _ in range(4)]
        del copies
    counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
counts = []
thread = threading.Thread(target=images)
thread.start()
thread.join()
print((counts[1] - counts[0]) / 50)
"""


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


def faults(keep: str) -> float:
    """Return the page faults of a round of four images of 2 MiB each."""
    done = subprocess.run([sys.executable, '-c', MANY.format(keep=keep)], capture_output=True,
                          text=True, check=True)
    return float(done.stdout)


def test_memory_of_images_is_kept_and_not_asked_for_again() -> None:
    if faults('') < 500:
        pytest.skip('this C library keeps memory by itself')
    assert faults('keep_memory()') < 50
