"""What the modalities say of each other, as messages and out of messages."""

from collections.abc import Callable, Iterable

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from geometry_msgs.msg import Point, PointStamped
from rclpy.publisher import Publisher

from hybrid_guidance.detection.anatomy import Shift
from hybrid_guidance.fusion.watched import Report, WatchedFusion
from hybrid_guidance.ros.convert import header
from hybrid_guidance.ros.health import ERROR, OK, WARN
from hybrid_guidance.ros.node import GuidanceNode

FROZEN = 'image does not change'
LEVELS = OK, WARN, ERROR


def shift_message(shift: Shift | None, frame_id: str, nanoseconds: int) -> PointStamped:
    """Return how far anatomy moved: x, y px, z their deviation; all zero: nothing to go by."""
    message = PointStamped(header=header(frame_id, nanoseconds))
    if shift is not None:
        message.point = Point(x=float(shift.pixels[0]), y=float(shift.pixels[1]),
                              z=shift.deviation)
    return message


def agreement_message(report: Report) -> DiagnosticStatus:
    """Return what the modalities say of each other as a status."""
    found = report.difference
    values = {'state': report.state.value,
              'pixels': f'{abs(found.pixels):.2f}' if found else 'nan',
              'sigma': f'{found.sigma:.2f}' if found else 'nan',
              'faults': ', '.join(report.faults)}
    return DiagnosticStatus(
        level=LEVELS[report.level], name='agreement', message=report.words,
        values=[KeyValue(key=key, value=value) for key, value in values.items()])


def say_agreement(node: GuidanceNode, publisher: Publisher,  # type: ignore[type-arg]
                  report: Report) -> None:
    """Publish a report, and say on /diagnostics what is wrong."""
    level = LEVELS[report.level]
    node.health.set('agreement', level == OK, report.words, level)
    publisher.publish(agreement_message(report))


def listen_to_trackers(node: GuidanceNode, sensors: Iterable[str],  # type: ignore[type-arg]
                       watched: Callable[[], WatchedFusion]) -> None:
    """Pass on what the tracker of a sensor says of frozen images, and when they change again.

    It is on /diagnostics: whoever replaces a tracker has it for nothing.

    Args:
        node: listens.
        sensors: whose trackers.
        watched: returns who is told.
    """
    prefix = node.get_namespace().strip('/')
    names = {f'{prefix}/{sensor}_tracker_node'.lstrip('/'): sensor for sensor in sensors}

    def hear(message: DiagnosticArray) -> None:
        for status in message.status:
            if sensor := names.get(status.name):
                _, found, rest = status.message.partition(FROZEN)
                watched().told(sensor, found + rest.partition(';')[0], node.now_ns())
    node.create_subscription(DiagnosticArray, '/diagnostics', hear, 10)
