"""Whether those at the other end of a topic can hear, or be heard, at all.

rclpy warns of an incompatible quality of service by event handlers, two to four on each topic,
and asks every one of them after every message: a third of a small node's time. Asking the graph
once in a while says the same, and says it on /diagnostics.
"""

from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy

from hybrid_guidance.ros.health import Health


class Partners:
    """Checks one topic at each call, in turn.

    Args:
        node: whose topics.
        health: where to say what does not fit.
    """

    def __init__(self, node: Node, health: Health) -> None:
        self._node, self._health = node, health
        self._topics: dict[tuple[str, bool], QoSProfile] = {}
        self._next = 0

    def add(self, topic: str, quality: QoSProfile | int, publishes: bool) -> None:
        """Check this topic from now on."""
        profile = quality if isinstance(quality, QoSProfile) else QoSProfile(depth=quality)
        self._topics[(self._node.resolve_topic_name(topic), publishes)] = profile

    def check(self) -> None:
        """Compare the next topic with all its partners."""
        if not self._topics:
            return
        self._next = (self._next + 1) % len(self._topics)
        (topic, publishes), own = list(self._topics.items())[self._next]
        ask = (self._node.get_subscriptions_info_by_topic if publishes
               else self._node.get_publishers_info_by_topic)
        deaf = []
        for partner in ask(topic):
            pair = (own, partner.qos_profile) if publishes else (partner.qos_profile, own)
            reason = mismatch(*pair)
            if reason:
                deaf.append(f'{partner.node_name} ({reason})')
        self._health.set(f'quality of {topic}', not deaf, (
            f'nothing arrives {"at" if publishes else "from"} {"; ".join(deaf)}; give both ends '
            'qualities of service that fit'))


def mismatch(publisher: QoSProfile, subscriber: QoSProfile) -> str:
    """Return in words why the one is not heard by the other; '' when it is.

    Deadlines and liveliness are left out: nobody here asks for them, and what stands for "none"
    differs between a profile and what the graph tells of it.
    """
    if (publisher.reliability == ReliabilityPolicy.BEST_EFFORT
            and subscriber.reliability == ReliabilityPolicy.RELIABLE):
        return 'published best effort, but reliable is asked for'
    if (publisher.durability == DurabilityPolicy.VOLATILE
            and subscriber.durability == DurabilityPolicy.TRANSIENT_LOCAL):
        return 'published volatile, but transient local is asked for'
    return ''
