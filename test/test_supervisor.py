"""The supervisor and the processes it starts: real ones, which end in all ways."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hybrid_guidance.supervisor import PARENT, Supervisor


class Bench:
    """A supervisor whose children are lines of Python, and what it reports."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []
        self.deaths: list[tuple[str, int, tuple[str, ...]]] = []
        self.supervisor = Supervisor(
            lambda name, line: self.lines.append((name, line)),
            lambda name, status, lines: self.deaths.append((name, status, tuple(lines))),
            dict(os.environ))

    def start(self, name: str, program: str) -> int:
        self.supervisor.start(name, [sys.executable, '-c', program])
        return self.supervisor.children[name].process.pid

    def started(self, name: str, program: str) -> int:
        """Start a child and wait until it has printed "ready"."""
        process = self.start(name, program)
        until(lambda: (name, 'ready') in self.lines)
        return process


def until(look: Callable[[], Any], seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while not look():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_alive(process: int) -> bool:
    try:
        state = Path(f'/proc/{process}/stat').read_text()
    except OSError:
        return False
    return state.rpartition(')')[2].split()[0] not in 'ZX'


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.supervisor.stop()


WAIT = 'import time; print("ready", flush=True); time.sleep(60)'
DEAF = 'import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); ' + WAIT


def test_what_children_print_is_told_with_their_names(bench: Bench) -> None:
    bench.start('a', 'import sys; print("out"); print("err", file=sys.stderr)')
    bench.start('b', r'import sys; sys.stdout.buffer.write(b"\xff bad\n")')
    until(lambda: len(bench.lines) == 3)
    assert {('a', 'out'), ('a', 'err'), ('b', '\ufffd bad')} == set(bench.lines)


def test_a_child_that_dies_is_reported_once_with_its_status_and_last_lines(bench: Bench) -> None:
    bench.start('a', 'import sys\nfor n in range(40): print(n)\nsys.exit(3)')
    other = bench.started('b', WAIT)
    until(bench.supervisor.watch)
    assert bench.supervisor.watch() == []
    (name, status, lines), = bench.deaths
    assert (name, status) == ('a', 3)
    assert lines == tuple(str(number) for number in range(25, 40))
    assert list(bench.supervisor.children) == ['b']
    assert is_alive(other)


def test_a_child_killed_from_outside_is_reported_with_the_signal(bench: Bench) -> None:
    os.kill(bench.started('a', WAIT), signal.SIGKILL)
    until(bench.supervisor.watch)
    assert bench.deaths == [('a', -signal.SIGKILL, ('ready',))]


def test_an_exception_of_a_child_is_in_its_last_lines(bench: Bench) -> None:
    bench.start('a', 'raise RuntimeError("no calibration")')
    until(bench.supervisor.watch)
    assert bench.deaths[0][2][-1] == 'RuntimeError: no calibration'


def test_stop_ends_every_child_and_reports_no_death(bench: Bench) -> None:
    processes = [bench.started(name, WAIT) for name in ('a', 'b')]
    assert bench.supervisor.stop() == []
    assert not any(map(is_alive, processes))
    assert bench.supervisor.watch() == bench.deaths == []


def test_a_child_that_does_not_listen_is_killed_and_named(
        bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('hybrid_guidance.supervisor._GRACE_S', 0.5)
    processes = [bench.started('deaf', DEAF), bench.started('good', WAIT)]
    assert bench.supervisor.stop() == ['deaf']
    assert not any(map(is_alive, processes))


def test_an_interrupt_from_the_terminal_reaches_only_the_supervisor(bench: Bench) -> None:
    """It goes to the group in the foreground: children are in sessions of their own."""
    assert os.getsid(bench.started('a', WAIT)) != os.getsid(0)


NODE = """
import sys, time
from hybrid_guidance.ros.node import run
import rclpy
print('importing', flush=True)
time.sleep(float(sys.argv[1]))
def make():
    node = rclpy.create_node('orphan_test')
    print('ready', flush=True)
    return node
run(make)
print('ended', flush=True)
"""
LAUNCHER = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, '-c', sys.argv[1], sys.argv[2]],
                         env={**os.environ, sys.argv[3]: str(os.getpid())})
print(child.pid, flush=True)
time.sleep(60)
"""


@pytest.fixture
def launcher() -> Iterator[Callable[[float], tuple[Any, int]]]:
    """Start a process that starts a node; the node waits some seconds before it runs."""
    started: list[tuple[Any, int]] = []

    def begin(seconds: float) -> tuple[Any, int]:
        process = subprocess.Popen([sys.executable, '-c', LAUNCHER, NODE, str(seconds), PARENT],
                                   stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        started.append((process, int(process.stdout.readline())))
        return started[-1]
    yield begin
    for process, node in started:
        for number in (process.pid, node):
            if is_alive(number):
                os.kill(number, signal.SIGKILL)
        process.wait()
        process.stdout.close()


def heard(process: Any, word: str) -> None:
    while (line := process.stdout.readline().strip()) != word:
        assert line, f'ended before it said {word}'


def test_a_node_ends_with_the_process_that_started_it(launcher) -> None:
    process, node = launcher(0.0)
    heard(process, 'ready')
    assert is_alive(node)
    process.kill()
    until(lambda: not is_alive(node))


@pytest.mark.parametrize('buried', [True, False])
def test_a_node_whose_parent_dies_while_it_starts_does_not_stay(launcher, buried: bool) -> None:
    """Before it could ask to be told of that; the parent may still wait to be buried."""
    process, node = launcher(1.0)
    heard(process, 'importing')
    process.kill()
    if buried:
        process.wait()
    until(lambda: not is_alive(node))
    assert 'ready' not in process.stdout.read().split()


def test_a_node_started_by_a_process_between_lives_with_the_one_named(launcher) -> None:
    """A wrapper, such as a launch prefix, is not the supervisor: here that is this test."""
    process = subprocess.Popen(
        [sys.executable, '-c', LAUNCHER.replace('str(os.getpid())', 'str(os.getppid())'),
         NODE, '0', PARENT], stdout=subprocess.PIPE, text=True)
    node = int(process.stdout.readline())
    heard(process, 'ready')
    assert is_alive(node)
    for number in (node, process.pid):
        os.kill(number, signal.SIGKILL)
    process.wait()
    process.stdout.close()
