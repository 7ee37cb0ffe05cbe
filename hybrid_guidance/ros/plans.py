"""A plan on the wire: frame, path, waypoints and markers, all latched."""

from typing import Any

from geometry_msgs.msg import PointStamped, PoseArray
from nav_msgs.msg import Path as PathMessage
from std_msgs.msg import Float64
from visualization_msgs.msg import Marker, MarkerArray

from hybrid_guidance.geometry.needle import NeedleEstimate
from hybrid_guidance.geometry.rigid import inverse, transform_points
from hybrid_guidance.geometry.types import Points
from hybrid_guidance.planning.clearance import Nearest
from hybrid_guidance.planning.path import Path
from hybrid_guidance.planning.planner import Choice
from hybrid_guidance.ros import markers, qos, tf
from hybrid_guidance.ros.convert import (
    header,
    point_message,
    pose_message,
    pose_stamped,
    transform_message,
)
from hybrid_guidance.ros.node import GuidanceNode

_SHOWN = 1500
"""Candidates that RViz shows without delay."""


class PlanPublisher:
    """Publishes what is planned.

    Args:
        node: the planner.
    """

    def __init__(self, node: GuidanceNode[Any]) -> None:
        self._static = tf.StaticTransformBroadcaster(node)
        self._path = node.create_publisher(PathMessage, 'plan/path', qos.STATE)
        self._waypoints = node.create_publisher(PoseArray, 'plan/waypoints', qos.STATE)
        self._markers = node.create_publisher(MarkerArray, 'plan/markers', qos.STATE)

    def publish(self, path: Path, step: float, now: int, choice: Choice | None = None) -> None:
        """Show a path.

        Args:
            path: from entry to target, in ``patient``.
            step: m between waypoints.
            now: ns.
            choice: what it was chosen from, shown beside it.
        """
        self._static.sendTransform(transform_message('patient', 'plan', now, path.patient_T_plan))
        poses = path.waypoints(step)
        self._path.publish(PathMessage(header=header('patient', now), poses=[
            pose_stamped(pose, 'patient', now) for pose in poses]))
        self._waypoints.publish(PoseArray(header=header('patient', now),
                                          poses=[pose_message(pose) for pose in poses]))
        self._markers.publish(MarkerArray(markers=[
            *markers.path(path.entry, path.target, 'patient', now),
            *(_candidates(choice, now) if choice else ())]))


class ProgressPublisher:
    """Publishes where a needle is beside the plan, and what is near it, at the needle's stamp.

    Args:
        node: the planner.
    """

    def __init__(self, node: GuidanceNode[Any]) -> None:
        publish = node.create_publisher
        self._deviation = publish(PointStamped, 'plan/deviation', qos.OBSERVATION)
        self._danger = publish(PointStamped, 'plan/nearest_structure', qos.OBSERVATION)
        self._clear = publish(Float64, 'plan/clearance', qos.OBSERVATION)

    def publish(self, deviation: Points, needle: NeedleEstimate, nearest: Nearest | None,
                stamp: int) -> None:
        """Publish.

        Args:
            deviation: (3,) m, in ``plan``.
            needle: in ``patient``.
            nearest: the structure that is nearest; None where no anatomy is known. Of one that
                is only known to be far no place is published.
            stamp: of the needle, ns.
        """
        self._deviation.publish(PointStamped(
            header=header('plan', stamp), point=point_message(deviation)))
        if nearest is None:
            return
        self._clear.publish(Float64(data=nearest.clearance))
        if nearest.point is None:
            return
        point: Points = transform_points(inverse(needle.pose), nearest.point)
        self._danger.publish(PointStamped(
            header=header('needle_tip', stamp), point=point_message(point)))


def _candidates(choice: Choice, now: int) -> list[Marker]:
    """Return markers of all entries by their cost, and of the best paths."""
    found, paths = choice
    few = slice(None, None, max(1, len(found.entries) // _SHOWN))
    return markers.candidates(found.entries[few], found.cost[few], [
        (path.path.entry, path.path.target) for path in paths], 'patient', now)
