"""Two registrations of one CT, by ultrasound and by X-ray, must agree: the loop through the room.

CT to ultrasound image to probe to room, and CT to X-ray to C-arm to room, end at the same place
only where both calibrations, both trackings and both registrations are right. Neither registration
sees an error of its own calibration: it moves everything alike. The loop does.
"""

from dataclasses import dataclass

import numpy as np

from hybrid_guidance.geometry.rigid import inverse, transform_points, vector_from_rotation
from hybrid_guidance.geometry.types import Array, Points
from hybrid_guidance.registration.result import Registration, RegistrationError, chi_square_tail

_LEAST_P = 0.02


@dataclass(frozen=True)
class Closure:
    """How well the loop closes.

    Attributes:
        gap: (3,) metres in ``fixed``: where the first puts the target, less where the second does.
        turn: (3,) radians about the axes of ``fixed``, by which the first is turned.
        covariance: (3, 3) m², of the gap.
        probability: of a gap as long as this, where nothing is wrong.
        reasons: why it does not close, in words; none where it does.
    """

    gap: Points
    turn: Array
    covariance: Array
    probability: float
    reasons: tuple[str, ...] = ()

    @property
    def closed(self) -> bool:
        """Whether both agree."""
        return not self.reasons

    @property
    def verdict(self) -> str:
        """One line for the operator."""
        length = 1e3 * float(np.linalg.norm(self.gap))
        expected = 1e3 * float(np.sqrt(np.trace(self.covariance)))
        words = f'{length:.1f} mm at the target, {expected:.1f} mm expected'
        return f'closed: {words}' if self.closed else f'{"; ".join(self.reasons)} ({words})'


def close_loop(ultrasound: Registration, xray: Registration) -> Closure:
    """Compare two registrations of one CT in one room.

    Args:
        ultrasound: ``fixed_T_ct`` by the surface of bone, through probe and tracker; its
            ``common`` the deviation that the calibration claims (0.3 mm), with no allowance for
            one that is worse: that is what is asked here.
        xray: ``fixed_T_ct`` by X-rays, through C-arm and tracker; the same target. One is enough:
            its covariance says how far away the bone is only roughly.

    Raises:
        RegistrationError: their targets differ, or one of them was refused.
    """
    if not np.allclose(ultrasound.target, xray.target, atol=1e-6):
        raise RegistrationError('the two registrations have different targets; repeat one')
    for name, each in (('ultrasound', ultrasound), ('X-ray', xray)):
        if not each.holds:
            raise RegistrationError(f'the registration by {name} was {each.verdict}')
    target = xray.target
    gap = (transform_points(ultrasound.transform, target)
           - transform_points(xray.transform, target))
    turn = vector_from_rotation((ultrasound.transform @ inverse(xray.transform))[:3, :3])
    covariance = ultrasound.target_covariance + xray.target_covariance
    probability = chi_square_tail(float(gap @ np.linalg.solve(covariance, gap)), 3)
    reasons = []
    if probability < _LEAST_P:
        reasons.append('ultrasound and X-ray put the bone at different places; calibrate the probe '
                       'and the C-arm anew, and see whether a marker or the patient moved')
    return Closure(gap, turn, covariance, probability, tuple(reasons))
