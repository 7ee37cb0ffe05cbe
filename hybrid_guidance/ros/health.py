"""What a node says about itself: one line for each thing it depends on, on /diagnostics."""

import re

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.node import Node
from rclpy.qos import QoSProfile

_NUMBER = re.compile(r'\d+(\.\d+)?')
OK, WARN, ERROR = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR


class Health:
    """Collects what is wrong, in words, and publishes it once a second and at every change.

    Args:
        node: in whose name to speak.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self._faults: dict[str, tuple[bytes, str]] = {}
        self._values: dict[str, str] = {}
        self._publisher = node.create_publisher(DiagnosticArray, '/diagnostics',
                                                QoSProfile(depth=10))
        node.create_timer(1.0, self.publish)

    def set(self, topic: str, good: bool, words: str = '', level: bytes = WARN) -> None:
        """Say that something is good, or what is wrong with it; logged when it changes.

        Words that differ only in their numbers are no change: an age grows all the time.

        Args:
            topic: what it is about, for example ``image``.
            good: whether it is as it should be.
            words: what is wrong and what to do, when it is not.
            level: WARN or ERROR.
        """
        if good:
            if self._faults.pop(topic, None):
                self._node.get_logger().info(f'{topic}: good again')
                self.publish()
            return
        known = self._faults.get(topic)
        self._faults[topic] = (level, words)
        if known is None or _NUMBER.sub('', known[1]) != _NUMBER.sub('', words):
            log = self._node.get_logger()
            # rclpy tells severities apart by the line of the call: two lines, two severities.
            if level == ERROR:
                log.error(f'{topic}: {words}')
            else:
                log.warning(f'{topic}: {words}')
            self.publish()

    def value(self, key: str, value: object) -> None:
        """Keep a number or word to show beside the status."""
        self._values[key] = str(value)

    @property
    def faults(self) -> dict[str, str]:
        """What is wrong now: topic to words."""
        return {topic: words for topic, (_, words) in self._faults.items()}

    def publish(self) -> None:
        """Publish the status now."""
        level = max((level for level, _ in self._faults.values()), default=OK)
        status = DiagnosticStatus(
            level=level, name=self._node.get_fully_qualified_name().lstrip('/'),
            hardware_id='hybrid_guidance',
            message='; '.join(f'{topic}: {words}' for topic, (_, words) in self._faults.items())
            or 'good',
            values=[KeyValue(key=key, value=value) for key, value in self._values.items()])
        message = DiagnosticArray(status=[status])
        message.header.stamp = self._node.get_clock().now().to_msg()
        self._publisher.publish(message)
