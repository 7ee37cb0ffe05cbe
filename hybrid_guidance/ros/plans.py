"""A plan on the wire: frame, path, waypoints and markers, all latched."""

from collections.abc import Sequence
from typing import Any

from geometry_msgs.msg import PoseArray
from nav_msgs.msg import Path as PathMessage
from visualization_msgs.msg import Marker, MarkerArray

from hybrid_guidance.planning.candidates import Candidates
from hybrid_guidance.planning.choice import RankedPath
from hybrid_guidance.planning.path import Path
from hybrid_guidance.ros import markers, qos, tf
from hybrid_guidance.ros.convert import header, pose_message, pose_stamped, transform_message
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

    def publish(self, path: Path, step: float, now: int, extra: Sequence[Marker]) -> None:
        """Show a path.

        Args:
            path: from entry to target, in ``patient``.
            step: m between waypoints.
            now: ns.
            extra: markers beside the path.
        """
        self._static.sendTransform(transform_message('patient', 'plan', now, path.patient_T_plan))
        poses = path.waypoints(step)
        self._path.publish(PathMessage(header=header('patient', now), poses=[
            pose_stamped(pose, 'patient', now) for pose in poses]))
        self._waypoints.publish(PoseArray(header=header('patient', now),
                                          poses=[pose_message(pose) for pose in poses]))
        self._markers.publish(MarkerArray(markers=[
            *markers.path(path.entry, path.target, 'patient', now), *extra]))

    @staticmethod
    def candidates(found: Candidates, paths: Sequence[RankedPath], now: int) -> list[Marker]:
        """Return markers of all entries by their cost, and of the best paths."""
        few = slice(None, None, max(1, len(found.entries) // _SHOWN))
        return markers.candidates(found.entries[few], found.cost[few], [
            (path.path.entry, path.path.target) for path in paths], 'patient', now)
