"""How good a run was, against the truth of the simulation."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hybrid_guidance.geometry.needle import NeedleEstimate
from hybrid_guidance.geometry.rigid import angle_between
from hybrid_guidance.geometry.types import Transform


@dataclass(frozen=True)
class Sample:
    """One estimate against the truth at the same time.

    Attributes:
        tip_error: m.
        angle_error: rad.
        nees: normalised estimation error squared of the tip (χ², three degrees of freedom).
    """

    tip_error: float
    angle_error: float
    nees: float


def compare(estimate: NeedleEstimate, truth: Transform) -> Sample:
    """Compare an estimate with the (4, 4) true pose in the same frame."""
    error = estimate.tip - truth[:3, 3]
    return Sample(float(np.linalg.norm(error)), angle_between(estimate.direction, truth[:3, 2]),
                  float(error @ np.linalg.solve(estimate.covariance[:3, :3], error)))


def percentiles(values: Sequence[float], scale: float = 1.0) -> dict[str, float]:
    """Return p50, p95 and the worst of some values, scaled; empty without values."""
    if not len(values):
        return {}
    p50, p95, worst = np.percentile(np.asarray(values) * scale, (50, 95, 100))
    return {'p50': round(float(p50), 4), 'p95': round(float(p95), 4),
            'worst': round(float(worst), 4)}


def write_samples(path: Path, samples: Sequence[Sample]) -> None:
    """Write every comparison as a line of CSV, for whoever wants more than percentiles."""
    rows = [f'{item.tip_error * 1e3:.4f},{np.degrees(item.angle_error):.4f},{item.nees:.4f}'
            for item in samples]
    path.write_text('\n'.join(['tip_error_mm,angle_error_deg,nees', *rows]) + '\n',
                    encoding='utf-8')


def summarise(samples: Sequence[Sample]) -> dict[str, Any]:
    """Return the errors of a run in mm and degrees, and the mean NEES."""
    return {
        'estimates': len(samples),
        'fused_tip_error_mm': percentiles([item.tip_error for item in samples], 1e3),
        'fused_angle_error_deg': percentiles([np.degrees(item.angle_error) for item in samples]),
        'mean_nees': round(float(np.mean([item.nees for item in samples])), 3)
        if samples else None,
    }
