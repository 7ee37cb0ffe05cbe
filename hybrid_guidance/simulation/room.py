"""The simulated operating room: where everything truly is, and what its trackers say."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from hybrid_guidance.geometry.rigid import inverse, perturbed
from hybrid_guidance.geometry.types import Array, Transform
from hybrid_guidance.procedure import Procedure


@dataclass(frozen=True)
class Belief:
    """A transform as somebody believes it, with the (6, 6) covariance of its error."""

    transform: Transform
    covariance: Array


@dataclass(frozen=True)
class Room:
    """The true poses of everything that stands still.

    Attributes:
        world_T_patient: (4, 4).
        world_T_carm: (4, 4) of the tracked body on the C-arm.
        world_T_probe: (4, 4) of the tracked body on the probe.
        carm_T_fluoroscopy: (4, 4), the true mounting of the X-ray source.
        probe_T_ultrasound: (4, 4), the true mounting of the slice.
    """

    world_T_patient: Transform
    world_T_carm: Transform
    world_T_probe: Transform
    carm_T_fluoroscopy: Transform
    probe_T_ultrasound: Transform

    def world_T_swept(self, image_T_swept: Transform) -> Transform:
        """Return where the probe is when its image has moved by (4, 4), in the image's axes."""
        return (self.world_T_probe @ self.probe_T_ultrasound @ image_T_swept
                @ inverse(self.probe_T_ultrasound))


def make_room(procedure: Procedure, beliefs: Mapping[str, Belief], seed: int) -> Room:
    """Draw the truth around what the calibration file says.

    The imagers are aimed by what is believed, as an operator would, so they see the target up
    to the errors drawn.

    Args:
        procedure: how C-arm and probe stand towards the patient.
        beliefs: child frame (``patient``, ``fluoroscopy_optical_frame``, ``ultrasound_image``)
            to its believed transform in its parent.
        seed: of the errors.
    """
    random = np.random.default_rng([seed, 0x0a1])
    truth = {name: perturbed(beliefs[name].transform, random.multivariate_normal(
        np.zeros(6), beliefs[name].covariance)) for name in sorted(beliefs)}
    world_T_patient = beliefs['patient'].transform
    carm_T_optical = beliefs['fluoroscopy_optical_frame'].transform
    probe_T_image = beliefs['ultrasound_image'].transform
    return Room(
        truth['patient'],
        world_T_patient @ procedure.patient_T_fluoroscopy() @ inverse(carm_T_optical),
        world_T_patient @ procedure.patient_T_ultrasound() @ inverse(probe_T_image),
        truth['fluoroscopy_optical_frame'], truth['ultrasound_image'])


@dataclass(frozen=True)
class Reading:
    """One pose from a tracker: taken at ``stamp_ns``, told at ``due_ns``."""

    stamp_ns: int
    due_ns: int
    pose: Transform


class Tracker:
    """An optical tracker: noisy, and late; a bad one also biased and at times blind.

    Args:
        position: deviation of each coordinate, metres.
        rotation: deviation about each axis, radians.
        delay_s: from taking a pose to telling it.
        seed: of the noise.
        bias: constant error of the position, metres; its direction is drawn.
        dropout: share of the time in which the body is not seen.
        gap: how many readings are lost in a row, on average.
    """

    def __init__(self, position: float, rotation: float, delay_s: float, seed: int,
                 bias: float = 0.0, dropout: float = 0.0, gap: float = 10.0) -> None:
        self._deviation = np.array([position] * 3 + [rotation] * 3)
        self._delay_ns = int(delay_s * 1e9)
        self._random = np.random.default_rng([seed, 0x0a2])
        # Other draws of their own, or a bias would change the noise.
        self._fate = np.random.default_rng([seed, 0x0a5])
        direction = self._fate.standard_normal(3)
        self._bias = np.zeros(6)
        self._bias[:3] = bias * direction / np.linalg.norm(direction)
        # A chain of two states whose share of time blind is ``dropout``.
        self._back = 1.0 / max(gap, 1.0)
        self._out = min(self._back * dropout / max(1.0 - dropout, 1e-9), 1.0)
        self._blind = False

    def read(self, pose: Transform, stamp_ns: int) -> Reading | None:
        """Take a pose, position noise at the body's own origin; None where it is not seen."""
        noise = self._random.standard_normal(6) * self._deviation
        chance = self._back if self._blind else self._out
        self._blind ^= bool(self._fate.random() < chance)
        if self._blind:
            return None
        return Reading(stamp_ns, stamp_ns + self._delay_ns, perturbed(pose, noise + self._bias))


class Tracking:
    """What trackers tell of several bodies, in the order in which it is due.

    Args:
        trackers: name of a body to its tracker.
    """

    def __init__(self, trackers: Mapping[str, Tracker]) -> None:
        self._trackers = trackers
        self._readings: deque[tuple[str, Reading]] = deque()

    def clear(self) -> None:
        """Forget what has not been told yet."""
        self._readings.clear()

    def told(self, poses: Mapping[str, Transform], now_ns: int) -> list[tuple[str, Reading]]:
        """Read the bodies that are tracked, and return what is due: name and reading."""
        for name, tracker in self._trackers.items():
            reading = tracker.read(poses[name], now_ns)
            if reading is not None:
                self._readings.append((name, reading))
        due = []
        while self._readings and self._readings[0][1].due_ns <= now_ns:
            due.append(self._readings.popleft())
        return due
