"""Whether a person stands behind the plan, and why not any more."""

import numpy as np

from hybrid_guidance.geometry.rigid import transform_points
from hybrid_guidance.geometry.types import Points, Transform


class Approval:
    """An approval holds for one plan on one registration.

    Breathing moves the patient slowly and the plan with it; a new registration moves it at once.

    Args:
        limit: m, by how much the target may jump from one look at the registration to the next.
    """

    def __init__(self, limit: float) -> None:
        self.given = False
        self.why_not = 'the plan waits for plan/approve'
        self._limit = limit
        self._refused = ''
        self._world_T_patient: Transform | None = None

    def answer(self, wanted: bool) -> tuple[bool, str]:
        """Approve or withdraw as a person asks; return whether that was done, and what to tell."""
        if not wanted:
            self.withdraw('withdrawn by plan/approve')
            return True, 'approval withdrawn; nothing moves'
        self.given = not self._refused
        if self._refused:
            return False, f'nothing to approve: {self._refused}'
        return True, 'guiding'

    def withdraw(self, why: str) -> None:
        """Withdraw it, and say why."""
        self.given = False
        self.why_not = f'{why}; approve with plan/approve'

    def refuse(self, why: str) -> None:
        """There is no plan: withdraw, and take no approval until there is one."""
        self.withdraw(why)
        self._refused = why

    def renew(self, why: str) -> None:
        """There is another plan: what was approved is not it."""
        self._refused = ''
        if self.given:
            self.withdraw(why)

    def look(self, world_T_patient: Transform, target: Points) -> bool:
        """Look at the registration; withdraw if it jumped. Tell whether it did just now.

        Args:
            world_T_patient: (4, 4) of now.
            target: (3,) m, in ``patient``.
        """
        before, self._world_T_patient = self._world_T_patient, world_T_patient
        if before is None:
            return False
        jump = float(np.linalg.norm(transform_points(world_T_patient, target)
                                    - transform_points(before, target)))
        if not self.given or jump <= self._limit:
            return False
        self.withdraw(f'the registration moved the target by {jump * 1e3:.1f} mm, more than '
                      f'{self._limit * 1e3:.1f} mm: look whether the plan still holds')
        return True
