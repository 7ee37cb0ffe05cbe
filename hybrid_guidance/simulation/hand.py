"""A hand that moves the needle where it is told, as well as a hand can."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hybrid_guidance.geometry.rigid import (
    inverse,
    perturbed,
    rotation_from_vector,
    transform,
    vector_from_rotation,
)
from hybrid_guidance.geometry.types import Array, Points, Transform


@dataclass(frozen=True)
class HandSkill:
    """What a hand can do.

    Attributes:
        speed: of the tip, m/s.
        turn: of the shaft, rad/s.
        tremor: deviation of the tip, m.
        tremor_turn: deviation of the shaft, rad.
        tremor_time: correlation time of the tremor, s.
        eye_position: how far off a place found by eye is, m.
        eye_rotation: how far off a direction set by eye is, rad.
        aim: a goal by eye that lies further ahead than this is aimed at anew, m.
    """

    speed: float = 0.006
    turn: float = 0.10
    tremor: float = 0.1e-3
    tremor_turn: float = 0.002
    tremor_time: float = 0.2
    eye_position: float = 1.5e-3
    eye_rotation: float = 0.025
    aim: float = 0.010


class Hand:
    """Holds the needle; ``pose`` is its true pose, ``held`` the same without tremor.

    The hand never knows where the needle truly is. Told a pose while the needle is seen, it
    moves by the difference between the pose told and the pose shown; told one while it is not
    seen, it goes there by eye, with the error of an eye.

    Args:
        pose: (4, 4) where the needle is at first, in any frame fixed to the patient.
        skill: speeds and errors.
        seed: of tremor and eye.
        bone: signed distance of (..., 3) points to bone in m, negative inside; a tip that meets
            bone goes no deeper. None: no bone in the way.
    """

    def __init__(self, pose: Transform, skill: HandSkill, seed: int,
                 bone: Callable[[Points], Array] | None = None) -> None:
        self.held = pose
        self._bone = bone
        # No bone is nearer to this point than this: most steps need no look at all.
        self._free = (np.zeros(3), 0.0)
        self._skill = skill
        self._random = np.random.default_rng([seed, 0x0a3])
        self._tremor = np.zeros(6)
        self._eyes = np.random.default_rng([seed, 0x0e7])
        self._eye = np.zeros(6)
        self._aimed: Points | None = None
        self._goal: Transform | None = None

    @property
    def pose(self) -> Transform:
        """The (4, 4) true pose of the needle, tremor included."""
        return self.held @ perturbed(np.eye(4), self._tremor)

    def follow(self, told: Transform, shown: Transform | None, held_then: Transform) -> None:
        """Take a new goal.

        Args:
            told: (4, 4) where the needle should be.
            shown: (4, 4) where the display showed it when the goal was made; None: not at all.
            held_then: (4, 4) ``held`` at that moment.
        """
        if shown is None:
            self._aim(told)
            self._goal = perturbed(told, self._eye)
        else:
            self._goal = held_then @ inverse(shown) @ told

    def _aim(self, told: Transform) -> None:
        skill, tip = self._skill, told[:3, 3]
        if self._aimed is None or float((tip - self._aimed) @ told[:3, 2]) > skill.aim:
            self._eye = self._eyes.standard_normal(6) * ([skill.eye_position] * 3
                                                         + [skill.eye_rotation] * 3)
        self._aimed = tip

    def stop(self) -> None:
        """Keep still."""
        self._goal = None

    def advance(self, dt: float) -> None:
        """Let ``dt`` seconds pass."""
        self._shake(dt)
        if self._goal is None:
            return
        way = self._goal[:3, 3] - self.held[:3, 3]
        turn = vector_from_rotation(self._goal[:3, :3] @ self.held[:3, :3].T)
        # A straight shaft has no roll to correct.
        turn = turn - (turn @ self.held[:3, 2]) * self.held[:3, 2]
        needed = max(float(np.linalg.norm(way)) / self._skill.speed,
                     float(np.linalg.norm(turn)) / self._skill.turn)
        share = 1.0 if needed <= dt else dt / needed
        step = share * way
        if self._blocked(self.held[:3, 3], step):
            # Bone is felt: nothing goes deeper, but the needle can be drawn back or turned.
            along = self.held[:3, 2]
            step = step - max(float(step @ along), 0.0) * along
        self.held = transform(rotation_from_vector(share * turn) @ self.held[:3, :3],
                              self.held[:3, 3] + step)

    def _blocked(self, tip: Points, step: Array) -> bool:
        if self._bone is None or np.linalg.norm(tip + step - self._free[0]) < self._free[1]:
            return False
        before, after = self._bone(np.stack([tip, tip + step]))
        # Where shapes blend, their field can overstate a distance; half of it is safe.
        self._free = tip + step, 0.5 * float(after)
        return bool(after < 0.0 and after < before)

    def _shake(self, dt: float) -> None:
        keep = float(np.exp(-dt / self._skill.tremor_time))
        size = np.array([self._skill.tremor] * 3 + [self._skill.tremor_turn] * 3)
        self._tremor = (keep * self._tremor + np.sqrt(1.0 - keep**2) * size
                        * self._random.standard_normal(6))
