"""A needle at one place, as a slice and as an X-ray show it; what the filter knows of both."""

import numpy as np

from hybrid_guidance.fusion.needle_filter import Ending, NeedleFilter, Observation
from hybrid_guidance.fusion.needle_fusion import NeedleFusion
from hybrid_guidance.geometry.needle import NeedleEstimate
from hybrid_guidance.geometry.rigid import pose_along

CALIBRATION = {'ultrasound': np.diag([0.2e-3**2] * 3 + [0.001**2] * 3),
               'fluoroscopy': np.diag([0.2e-3**2] * 3 + [0.0003**2] * 3)}
DIRECTION = np.array([0.0, 0.6, 0.8])
HERE, ELSEWHERE = np.array([0.0, 0.0, 0.04]), np.array([0.0, 0.012, 0.031])


def ultrasound(time: float, tip: np.ndarray = HERE) -> Observation:
    """In a slice across x; known to 0.2 mm in it."""
    covariance = np.diag([1.2e-3**2, 0.2e-3**2, 0.2e-3**2, 0.01**2, 0.1**2, 0.1**2])
    return Observation('ultrasound', int(time * 1e9), NeedleEstimate(
        pose_along(tip, DIRECTION), covariance), np.eye(4))


def fluoroscopy(time: float, tip: np.ndarray = HERE) -> Observation:
    """Along y, so that it sees x and the depth."""
    covariance = np.diag([0.1e-3**2, 0.5**2, 0.1e-3**2, 1.6**2, 0.002**2, 1.6**2])
    return Observation('fluoroscopy', int(time * 1e9), NeedleEstimate(
        pose_along(tip, np.array([0.0, 0.0, 1.0])), covariance), np.eye(4))


def watching() -> NeedleFusion:
    """Return a fusion to which the end of a shaft in an X-ray is sure."""
    endings = {'fluoroscopy': Ending(tip=0.98, memory=0.1, sure=True)}
    return NeedleFusion(lambda: NeedleFilter(CALIBRATION, endings=endings))
