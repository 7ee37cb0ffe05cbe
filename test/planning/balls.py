"""A ball of a body with balls in it: every distance has a closed form."""

from collections.abc import Mapping

import numpy as np

from hybrid_guidance.simulation import shapes
from hybrid_guidance.simulation.shapes import Shape

BODY = 0.080
BALLS: Mapping[str, tuple[np.ndarray, float]] = {
    'skin': (np.zeros(3), BODY),
    'bone': (np.array([0.040, 0.016, 0.0]), 0.006),
    'artery': (np.array([0.060, -0.010, 0.004]), 0.003)}


def ball(centre: np.ndarray, radius: float) -> Shape:
    return shapes.ellipsoid(centre, np.full(3, radius))
