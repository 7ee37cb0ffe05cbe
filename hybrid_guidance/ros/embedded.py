"""ROS for programs that are not nodes: a node inside a supervisor, and what is installed."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import rclpy
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.signals import SignalHandlerOptions


@contextmanager
def embedded(make: Callable[..., Node],
             parameters: Mapping[str, Any]) -> Iterator[tuple[Any, Callable[[float], None]]]:
    """Keep a node in a program that has its own loop and its own answer to Ctrl-C.

    Args:
        make: makes the node; takes ``parameter_overrides``.
        parameters: name to value.

    Yields:
        The node, and a function that lets it work for at most some seconds.
    """
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    try:
        node = make(parameter_overrides=[
            Parameter(name, value=value) for name, value in parameters.items()])
        try:
            yield node, lambda seconds: rclpy.spin_once(node, timeout_sec=seconds)
        finally:
            node.destroy_node()
    finally:
        rclpy.try_shutdown()


def middleware() -> str:
    """Return the name of the middleware in use."""
    return str(rclpy.get_rmw_implementation_identifier())


def load_tf2_msgs() -> None:
    """Load the type support of tf2_msgs, which fails when it was built for another Python."""
    from tf2_msgs.msg import TFMessage
    TFMessage.__import_type_support__()
