"""The command line as a user meets it: real processes, exit statuses, words."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rcl_interfaces.srv import GetParameters
from rclpy.node import Node

from hybrid_guidance import cli, graph

LIMIT = 60.0


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, '-m', 'hybrid_guidance.cli', *words],
                          capture_output=True, text=True, timeout=LIMIT)


def test_parameters_of_an_unknown_node_are_an_error_that_names_the_known(capsys) -> None:
    assert cli.main(['parameters', 'ghost_node']) == 2
    printed = capsys.readouterr()
    assert printed.out == ''
    assert 'there is no ghost_node' in printed.err
    assert all(node.name in printed.err for node in graph.GRAPH)


def test_parameters_of_one_node_are_its_own_alone(capsys) -> None:
    assert cli.main(['parameters', 'fusion_node']) == 0
    printed = capsys.readouterr().out
    assert printed.startswith('### `fusion_node`\n')
    assert printed.count('###') == 1


@pytest.mark.parametrize(('words', 'told'), [
    (['--set', 'fusion_node.stael=1'], 'there is no stael'),
    (['--set', 'fusion_node.stale=99'], '--set fusion_node.stale=99: stale: 99.0 is not in'),
    (['--set', 'fusion_node'], 'write it as node.parameter=value'),
    (['--only', 'ghost_node'], 'there is no ghost_node'),
    (['--params', 'gone.yaml'], 'there is no file gone.yaml'),
    (['--seed', 'one'], 'seed: "one" is not a whole number')])
def test_what_up_does_not_take_is_refused_before_a_node_starts(
        words: list[str], told: str, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    done = run('up', *words)
    assert done.returncode == 2
    assert done.stdout == ''
    assert done.stderr.startswith('hybrid-guidance up: ')
    assert told in done.stderr
    assert 'Traceback' not in done.stderr


def test_a_choice_that_up_does_not_have_is_refused() -> None:
    done = run('up', '--ultrasound-source', 'radar')
    assert done.returncode == 2
    assert "invalid choice: 'radar'" in done.stderr


def nodes_of(process: int) -> list[int]:
    """Return the processes that a process has started."""
    found = []
    for path in Path('/proc').glob('[0-9]*/stat'):
        try:
            fields = path.read_text().rpartition(')')[2].split()
        except OSError:
            continue
        if int(fields[1]) == process and fields[0] not in 'ZX':
            found.append(int(path.parent.name))
    return found


class Up:
    """A running ``hybrid-guidance up``, with what it has printed so far in a file."""

    def __init__(self, log: Path, *words: str) -> None:
        self.log = log
        with log.open('w') as file:
            self.process = subprocess.Popen(
                [sys.executable, '-m', 'hybrid_guidance.cli', 'up', *words],
                stdout=file, stderr=subprocess.STDOUT,
                # Some are killed and cannot take their files with them.
                env={**os.environ, 'TMPDIR': str(log.parent)})

    def printed(self) -> str:
        return self.log.read_text()

    def until(self, look: Callable[[], Any]) -> None:
        deadline = time.monotonic() + LIMIT
        while not look():
            assert time.monotonic() < deadline, self.printed()
            time.sleep(0.05)

    def ended(self) -> int:
        return self.process.wait(timeout=LIMIT)


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Callable[..., Up]]:
    """Start the two nodes of the graph that need nothing else, unless other words are given."""
    started: list[Up] = []

    def begin(*words: str) -> Up:
        one = Up(tmp_path / f'up{len(started)}.log', *(words or (
            '--only', 'fluoroscopy_tracker_node', '--only', 'ultrasound_tracker_node')))
        started.append(one)
        return one
    yield begin
    for one in started:
        for number in [*nodes_of(one.process.pid), one.process.pid]:
            if one.process.poll() is None:
                os.kill(number, signal.SIGKILL)
        one.process.wait()


@pytest.fixture
def peer(ros: None) -> Iterator[Node]:
    node = rclpy.create_node('cli_test')
    yield node
    node.destroy_node()


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_every_node_and_is_no_failure(
        up, peer: Node, number: signal.Signals) -> None:
    graph = up()
    graph.until(lambda: {'fluoroscopy_tracker_node', 'ultrasound_tracker_node'} <= set(
        peer.get_node_names()))
    nodes = nodes_of(graph.process.pid)
    assert len(nodes) == 2
    graph.process.send_signal(number)
    assert graph.ended() == 0
    assert not [node for node in nodes if Path(f'/proc/{node}').exists()]
    assert 'Traceback' not in graph.printed()
    assert 'had to be killed' not in graph.printed()


def test_an_interrupt_while_nodes_start_ends_them_too(up) -> None:
    graph = up()
    graph.until(lambda: 'nodes are starting' in graph.printed())
    nodes = nodes_of(graph.process.pid)
    graph.process.send_signal(signal.SIGINT)
    assert graph.ended() == 0
    assert not [node for node in nodes if Path(f'/proc/{node}').exists()]


def test_nodes_end_when_their_supervisor_is_killed(up) -> None:
    graph = up()
    graph.until(lambda: 'nodes are starting' in graph.printed())
    nodes = nodes_of(graph.process.pid)
    graph.process.kill()
    graph.until(lambda: not [node for node in nodes if Path(f'/proc/{node}').exists()])


def test_a_node_that_dies_is_reported_with_its_last_lines_and_the_others_go_on(
        up, peer: Node, tmp_path: Path) -> None:
    heard: dict[str, DiagnosticStatus] = {}
    peer.create_subscription(DiagnosticArray, '/diagnostics', lambda message: heard.update(
        {status.name: status for status in message.status}), 10)
    file = tmp_path / 'params.yaml'
    file.write_text('/**/fluoroscopy_tracker_node:\n  ros__parameters: {threshold: 7.0}\n')
    graph = up('--only', 'fluoroscopy_tracker_node', '--only', 'ultrasound_tracker_node',
               '--params', str(file))
    graph.until(lambda: 'has ended' in graph.printed())
    report = graph.printed().partition('fluoroscopy_tracker_node has ended (status 2); '
                                       'its last lines:\n')[2]
    assert 'threshold' in report.partition('\n')[0]
    assert len(nodes_of(graph.process.pid)) == 1

    def is_on_diagnostics() -> bool:
        rclpy.spin_once(peer, timeout_sec=0.1)
        return 'supervisor' in heard and heard['supervisor'].level == DiagnosticStatus.ERROR
    graph.until(is_on_diagnostics)
    assert 'fluoroscopy_tracker_node: has ended with status 2' in heard['supervisor'].message
    assert 'threshold' in heard['supervisor'].message
    graph.process.send_signal(signal.SIGINT)
    assert graph.ended() == 0


def test_up_fails_when_no_node_is_left(up, tmp_path: Path) -> None:
    file = tmp_path / 'params.yaml'
    file.write_text('/**:\n  ros__parameters: {threshold: 7.0}\n')
    graph = up('--only', 'ultrasound_tracker_node', '--params', str(file))
    assert graph.ended() == 1
    assert 'no node is left' in graph.printed()


def test_what_is_set_wins_over_the_file(up, peer: Node, tmp_path: Path) -> None:
    """The same file as in the test before, and the node lives."""
    file = tmp_path / 'params.yaml'
    file.write_text('/**:\n  ros__parameters: {threshold: 7.0}\n'
                    '/**/ultrasound_tracker_node:\n  ros__parameters: {threshold: 7.0}\n')
    graph = up('--only', 'ultrasound_tracker_node', '--params', str(file),
               '--set', 'ultrasound_tracker_node.threshold=0.6')
    client = peer.create_client(GetParameters, 'ultrasound_tracker_node/get_parameters')
    graph.until(client.service_is_ready)
    answer = client.call_async(GetParameters.Request(names=['threshold']))
    rclpy.spin_until_future_complete(peer, answer, timeout_sec=LIMIT)
    assert answer.result().values[0].double_value == 0.6
