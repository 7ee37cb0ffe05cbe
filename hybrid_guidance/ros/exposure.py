"""Advice on the next exposure: what it would tell, and what it costs."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus
from geometry_msgs.msg import PointStamped
from std_msgs.msg import Float64

from hybrid_guidance.fusion.advice import Circumstances, Limits, advise
from hybrid_guidance.fusion.watched import WatchedFusion
from hybrid_guidance.geometry.types import Points
from hybrid_guidance.parameters import parameter
from hybrid_guidance.ros import qos, tf
from hybrid_guidance.ros.convert import advice_message, point_array, stamp_ns
from hybrid_guidance.ros.node import GuidanceNode

FRESH_NS = 1_000_000_000


@dataclass(frozen=True)
class ExposureParameters:
    """Parameters of ``fusion/exposure_advice``."""

    exposure_limit: float = parameter(0.00065, low=0.0001, high=0.1, unit='m', meaning=(
        'tip error above which fusion/exposure_advice says expose, if that would help'))
    exposure_risk: float = parameter(0.01, low=0.0, high=1.0, meaning=(
        'probability of touching what must not be touched, above which it does'))
    unchecked: float = parameter(0.015, low=0.001, high=1.0, unit='m', meaning=(
        'how much deeper than an X-ray has shown it the needle may be before it does'))

    @property
    def limits(self) -> Limits:
        """When an exposure is worth its dose."""
        return Limits(self.exposure_limit, risk=self.exposure_risk, unchecked=self.unchecked)


class ExposureAdviser:
    """Publishes ``fusion/exposure_advice``, while anybody listens.

    Args:
        node: the node that fuses; it follows /tf, and has ``ExposureParameters``.
        source: name of the X-ray among the filter's sources.
    """

    def __init__(self, node: GuidanceNode[Any], source: str) -> None:
        self._node, self._source = node, source
        self._nearest: PointStamped | None = None
        self._dose, self._kerma = math.nan, math.nan
        self._advice = node.create_publisher(
            DiagnosticStatus, 'fusion/exposure_advice', qos.OBSERVATION)
        node.create_subscription(
            PointStamped, 'plan/nearest_structure', self._on_nearest, qos.OBSERVATION)
        node.create_subscription(Float64, f'{source}/air_kerma', self._on_kerma, qos.STATE)

    def publish(self, watched: WatchedFusion, away: Points) -> None:
        """Say whether to expose now.

        Args:
            watched: what is known.
            away: (3,) m, one σ of where a breath has carried the needle.
        """
        if not self._advice.get_subscription_count():
            return
        now = self._node.now_ns()
        given = Circumstances(self._danger(now), self._dose, away, watched.unsettled)
        self._advice.publish(advice_message(advise(
            watched.fusion, now, self._source, self._node.parameters.limits, given)))

    def _on_nearest(self, message: PointStamped) -> None:
        point_array(message.point)  # Refuse what is not finite.
        self._nearest = message

    def _danger(self, now: int) -> Points | None:
        """Return (3,) m from the tip to what is nearest to it, in the axes of the world."""
        if self._nearest is None:
            return None
        head = self._nearest.header
        stamp = stamp_ns(head.stamp)
        if not 0 <= now - stamp < FRESH_NS:
            return None
        try:
            world_T_frame = self._node.lookup('world', head.frame_id, stamp)
        except tf.TransformException:
            return None  # The pose of that moment is on its way, or gone; the next one will do.
        return np.asarray(world_T_frame[:3, :3] @ point_array(self._nearest.point))

    def _on_kerma(self, message: Float64) -> None:
        """Take what the last exposure has added."""
        if message.data > self._kerma:
            self._dose = message.data - self._kerma
        self._kerma = message.data
