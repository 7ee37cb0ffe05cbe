"""Advice on the next exposure: what it would tell, and what it costs."""

import math
from collections.abc import Callable
from typing import Any

from diagnostic_msgs.msg import DiagnosticStatus
from geometry_msgs.msg import PointStamped
from std_msgs.msg import Float64

from hybrid_guidance.fusion.advice import Limits, advise
from hybrid_guidance.fusion.needle_fusion import NeedleFusion
from hybrid_guidance.geometry.types import Points
from hybrid_guidance.ros import qos, tf
from hybrid_guidance.ros.convert import advice_message, point_array, stamp_ns
from hybrid_guidance.ros.node import GuidanceNode

FRESH_NS = 1_000_000_000


class ExposureAdviser:
    """Publishes ``fusion/exposure_advice``, while anybody listens.

    Args:
        node: the node that fuses; it follows /tf.
        source: name of the X-ray among the filter's sources.
        limits: returns when an exposure is worth its dose.
    """

    def __init__(self, node: GuidanceNode[Any], source: str,
                 limits: Callable[[], Limits]) -> None:
        self._node, self._source, self._limits = node, source, limits
        self._danger: tuple[Points, int] | None = None
        self._dose, self._kerma = math.nan, math.nan
        self._advice = node.create_publisher(
            DiagnosticStatus, 'fusion/exposure_advice', qos.OBSERVATION)
        node.create_subscription(
            PointStamped, 'plan/nearest_structure', self._on_nearest, qos.OBSERVATION)
        node.create_subscription(Float64, f'{source}/air_kerma', self._on_kerma, qos.STATE)

    def publish(self, fusion: NeedleFusion) -> None:
        """Say whether to expose now."""
        if not self._advice.get_subscription_count():
            return
        now, danger = self._node.now_ns(), None
        if self._danger is not None and 0 <= now - self._danger[1] < FRESH_NS:
            danger = self._danger[0]
        self._advice.publish(advice_message(advise(
            fusion, now, self._source, self._limits(), danger, self._dose)))

    def _on_nearest(self, message: PointStamped) -> None:
        """Remember where the danger is, in the axes of the world."""
        stamp = stamp_ns(message.header.stamp)
        try:
            world_T_frame = self._node.lookup('world', message.header.frame_id, stamp)
        except tf.TransformException:
            return  # The pose of that moment is on its way, or gone; the next one will do.
        self._danger = world_T_frame[:3, :3] @ point_array(message.point), stamp

    def _on_kerma(self, message: Float64) -> None:
        """Take what the last exposure has added."""
        if message.data > self._kerma:
            self._dose = message.data - self._kerma
        self._kerma = message.data
