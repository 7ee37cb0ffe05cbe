"""Whether the patient still lies where the registration says, and how far off if not."""

from dataclasses import dataclass

import numpy as np

from hybrid_guidance.fusion.streams import Fault
from hybrid_guidance.geometry.projection import Projection
from hybrid_guidance.geometry.rigid import inverse, rotation_angle, transform_points
from hybrid_guidance.geometry.types import Array, Points, Transform

_LEAST, _SIGMAS = 0.001, 5.0
_STILL_SIGMAS = 5.0 * 2.0**0.5


@dataclass(frozen=True)
class AnatomyMotion:
    """How far the anatomy of an X-ray moved since the X-ray before it.

    Attributes:
        shift: (3,) px: (u, v) and their deviation, which is 0 where there was nothing to compare.
        projection: of the X-ray.
        mount_T_sensor: (4, 4).
        tracking: (6, 6) covariance of one tracked pose.
        world_T_mount: (4, 4) tracked C-arm, at the X-ray's time.
    """

    shift: Array
    projection: Projection
    mount_T_sensor: Transform
    tracking: Array
    world_T_mount: Transform


class PatientShift:
    """Adds up what X-rays say of the anatomy while the C-arm stands, and jumps of the needle.

    An X-ray is blind along its rays, a jump of the needle may be the needle's alone: either
    leaves the patient's place in doubt until somebody has registered again.
    """

    def __init__(self) -> None:
        self._mount: Transform | None = None
        self._shift, self._variance = np.zeros(3), 0.0
        self._jump = np.zeros(3)
        self._fault: Fault | None = None
        self._proven = 0.0

    @property
    def fault(self) -> Fault | None:
        """What is to be said."""
        return self._fault

    @property
    def doubt(self) -> float:
        """m, by which the patient may lie elsewhere than registered."""
        return max(self._proven, float(np.linalg.norm(self._jump)))

    def jumped(self, jump: Points, shown_by: str) -> None:
        """Take that the needle lies (3,) m beside where it was, all at once."""
        self._jump = jump
        if not self._proven:
            self._fault = Fault('shift', (
                f'the patient has moved, or the needle in it: {shown_by} shows the needle '
                f'{np.linalg.norm(jump) * 1e3:.1f} mm beside where it was, all at once, and the '
                'sensor did not move. Take an X-ray; if it shows the same, register the patient '
                'again'), grave=True)

    def see(self, motion: AnatomyMotion, point: Points) -> None:
        """Take what an X-ray shows of the anatomy near a (3,) point of the world."""
        before, self._mount = self._mount, motion.world_T_mount
        if before is None or not motion.shift[2] or not _is_still(before, motion):
            self._shift, self._variance = np.zeros(3), 0.0
            return
        world_T_sensor = motion.world_T_mount @ motion.mount_T_sensor
        depth = float(transform_points(inverse(world_T_sensor), point)[2])
        to_metres = world_T_sensor[:3, :3] @ motion.projection.metres_per_pixel(depth)
        self._shift = self._shift + to_metres @ motion.shift[:2]
        self._variance += float(motion.shift[2] * np.linalg.norm(to_metres[:, 0]))**2
        size = float(np.linalg.norm(self._shift))
        if size > max(_LEAST, _SIGMAS * self._variance**0.5):
            self._proven = size
            self._fault = Fault('shift', (
                f'the patient has moved by {size * 1e3:.1f} mm or more: all anatomy in the X-ray '
                'moved while the C-arm stood still. Register the patient again and call '
                'fusion/reload_calibration'), grave=True)
        elif self._jump.any() and not self._proven and self._would_show(world_T_sensor, point):
            # The needle jumped alone.
            self._jump, self._fault = np.zeros(3), None

    def _would_show(self, world_T_sensor: Transform, point: Points) -> bool:
        ray = point - world_T_sensor[:3, 3]
        along = float(self._jump @ ray) / float(np.linalg.norm(ray))
        return abs(along) < 0.5 * float(np.linalg.norm(self._jump))


def _is_still(before: Transform, motion: AnatomyMotion) -> bool:
    """Tell whether two tracked poses differ by no more than their noise."""
    deviation = np.sqrt(np.diag(motion.tracking))
    moved = float(np.linalg.norm(motion.world_T_mount[:3, 3] - before[:3, 3]))
    turned = rotation_angle(motion.world_T_mount[:3, :3] @ before[:3, :3].T)
    return moved < _STILL_SIGMAS * float(deviation[:3].max()) and turned < (
        _STILL_SIGMAS * float(deviation[3:].max()))
