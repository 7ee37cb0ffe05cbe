"""Telling the graph that one of its nodes has died."""

from collections.abc import Sequence

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.signals import SignalHandlerOptions

from hybrid_guidance.ros.health import ERROR, Health


class Announcer:
    """A node of the supervisor's own, that reports deaths on /diagnostics."""

    def __init__(self) -> None:
        # The supervisor has its own answer to Ctrl-C.
        rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
        self._node = rclpy.create_node('supervisor')
        self._health = Health(self._node)
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self._node)

    def died(self, name: str, status: int, lines: Sequence[str]) -> None:
        """Report a node that has ended, with the last line of its log."""
        last = lines[-1] if lines else 'nothing on its log'
        self._health.set(name, False, f'has ended with status {status}: {last}', ERROR)

    def work(self, seconds: float) -> None:
        """Wait for so long at most, and repeat what has been reported once a second.

        Most deaths are at start, before anybody can have found this node to listen to it.
        """
        self._executor.spin_once(timeout_sec=seconds)

    def close(self) -> None:
        """Leave the graph."""
        self._executor.shutdown()
        self._node.destroy_node()
        rclpy.try_shutdown()
