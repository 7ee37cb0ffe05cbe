"""tf2_ros, with its errors told apart and its tree kept a tree."""

import re

import tf2_ros
from geometry_msgs.msg import TransformStamped
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.time import Time

from hybrid_guidance.fusion import frame_tree
from hybrid_guidance.geometry.types import Transform
from hybrid_guidance.ros.convert import MessageError, matrix_from_transform

IMPLEMENTATION = 'tf2_ros'
CACHE = Duration(seconds=10)

TransformException = tf2_ros.TransformException
LookupException = tf2_ros.LookupException
ConnectivityException = tf2_ros.ConnectivityException
ExtrapolationException = tf2_ros.ExtrapolationException

class FutureException(tf2_ros.ExtrapolationException):
    """The stamp is newer than what is known; it may come."""

class PastException(tf2_ros.ExtrapolationException):
    """The stamp is older than what is kept; it will not come back."""

class RefusedException(tf2_ros.TransformException):
    """A transform that would break the tree."""

class Buffer(tf2_ros.Buffer):
    """tf2_ros.Buffer, refusing loops and second parents, telling future from past."""

    def __init__(self, cache_time: Duration = CACHE, node: Node | None = None) -> None:
        self._parentage = frame_tree.Parentage()
        self._static: set[str] = set()
        super().__init__(cache_time)

    def clear(self) -> None:
        """Forget every transform that moves."""
        self._parentage.keep(self._static)
        super().clear()

    def set_transform(self, transform: TransformStamped, authority: str) -> None:
        """Add a transform that moves."""
        self._check(transform)
        super().set_transform(transform, authority)

    def set_transform_static(self, transform: TransformStamped, authority: str) -> None:
        """Add a transform that holds at any time."""
        self._check(transform)
        self._static.add(transform.child_frame_id)
        super().set_transform_static(transform, authority)

    def _check(self, transform: TransformStamped) -> None:
        parent, child = transform.header.frame_id, transform.child_frame_id
        try:
            matrix_from_transform(transform.transform)
            self._parentage.add(parent, child)
        except MessageError as error:
            raise RefusedException(f'{parent} -> {child}: {error}') from None
        except frame_tree.RefusedError as error:
            raise RefusedException(str(error)) from None

    def lookup_transform(self, target_frame: str, source_frame: str, time: Time,
                         timeout: Duration | None = None) -> TransformStamped:
        """Return where ``source_frame`` was in ``target_frame`` at a time."""
        try:
            return super().lookup_transform(target_frame, source_frame, time,
                                            timeout or Duration())
        except ExtrapolationException as error:
            kind = PastException if _is_past(str(error)) else FutureException
            raise kind(str(error)) from None

    def lookup_matrix(self, target_frame: str, source_frame: str, time: Time) -> Transform:
        """Like ``lookup_transform``, as a (4, 4)."""
        found = self.lookup_transform(target_frame, source_frame, time)
        return matrix_from_transform(found.transform)

def _is_past(words: str) -> bool:
    """Tell whether tf2's words for an extrapolation are about the past.

    Of a frame with a single sample tf2 says only "at time 9.0, but only time 10.0".
    """
    times = re.search(r'at time ([\d.]+), but only time ([\d.]+)', words)
    if times is None:
        return 'into the past' in words
    return float(times[1]) < float(times[2])

TransformListener = tf2_ros.TransformListener
TransformBroadcaster = tf2_ros.TransformBroadcaster

class StaticTransformBroadcaster(tf2_ros.StaticTransformBroadcaster):
    """tf2_ros.StaticTransformBroadcaster without its memory of frames sent before.

    tf2_ros drops whatever it has sent once; here ``ros.tf`` decides what replaces what.
    """

    def sendTransform(
            self, transform: TransformStamped | list[TransformStamped]) -> None:
        """Send one transform or several, beside those in ``net_message``."""
        self.net_message.transforms.extend(
            transform if isinstance(transform, list) else [transform])
        self.pub_tf.publish(self.net_message)
