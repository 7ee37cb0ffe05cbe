"""Telling apart what can make ultrasound and X-ray, or one of them and the past, disagree.

* The tracked pose of a sensor steps from one place at rest to another, and its image stays the
  same: its marker has slipped. Real movement takes time, and changes the image.
* The needle in an image steps sideways while the sensor stands still: the patient has moved, or
  the needle in it.
* It fits where it should be once left and right are swapped: the image is mirrored.
"""

import math
from collections import deque
from dataclasses import dataclass, replace

import numpy as np

from hybrid_guidance.fusion.consistency import Difference
from hybrid_guidance.fusion.needle_filter import State, blind_axis
from hybrid_guidance.fusion.observe import Sighting
from hybrid_guidance.geometry.covariance import lever
from hybrid_guidance.geometry.needle import NeedleEstimate
from hybrid_guidance.geometry.rigid import angle_between, vector_from_rotation
from hybrid_guidance.geometry.types import Array, Points, Transform

JUMP = 0.0009
"""m beside where it was, in one image, that a needle is not led."""

TURN = float(np.deg2rad(3.0))
"""rad: what moves with the patient keeps its direction."""

OTHER = 0.008
"""m: what lies further beside is another line, no needle that has jumped."""

ALIKE = 3
"""Images that must say the same."""

_HALF = 3
_SPAN_NS = 400_000_000
_SIGMAS = 6.0
_STILL = 4.5
_SUDDEN = 4.0
"""A steady turn makes 1.5 times the step between the halves that it makes within them."""
_LEAST_STEP, _LEAST_TURN = 0.001, float(np.deg2rad(0.5))
_SAME_PLACE, _SAME_DIRECTION = 0.0006, float(np.deg2rad(1.2))
_MIRRORED_PLACE, _MIRRORED_DIRECTION = 0.003, float(np.deg2rad(6.0))
_MIRRORED_ALONG = 0.012
_SURE, _APART_S, _ANYWHERE, _LOST, _SHAFT = 12.0, 1.0, 1e-3, 0.1, 0.03
"""Log odds; s for which an end that is not the tip stays so; likelihood of another line; share of
ends that are not the tip, and m over which they are strewn."""


@dataclass(frozen=True)
class Step:
    """A tracked pose that stepped while the image stayed the same.

    Attributes:
        distance: m, by how much the needle seems to have moved with it.
        angle: rad.
    """

    distance: float
    angle: float


class MarkerWatch:
    """Finds steps of a sensor's tracked pose that its image does not share."""

    def __init__(self) -> None:
        self._seen: deque[tuple[Sighting, Array]] = deque(maxlen=2 * _HALF)
        self._reference: Transform | None = None
        self._point = np.zeros(3)

    def see(self, sighting: Sighting) -> Step | None:
        """Take what an image shows; return the step that the last few images prove."""
        if self._seen and not 0 < sighting.stamp_ns - self._seen[0][0].stamp_ns < _SPAN_NS:
            self._seen.clear()
        if not self._seen or self._reference is None:
            self._reference = sighting.marker
            self._point = (sighting.mount_T_sensor @ sighting.needle.pose)[:3, 3]
        self._seen.append((sighting, self._moved(sighting.marker)))
        return self._step() if len(self._seen) == 2 * _HALF else None

    @property
    def latest_ns(self) -> int:
        """Stamp of the last image."""
        return self._seen[-1][0].stamp_ns if self._seen else 0

    @property
    def is_still(self) -> bool:
        """Whether the tracked pose of the last images was the same, but for its noise."""
        poses = np.array([pose for _, pose in self._seen])
        return len(poses) > 1 and bool(
            (np.abs(poses - poses.mean(axis=0)) < _STILL * self._noise()).all())

    def _moved(self, pose: Transform) -> Array:
        """Return (6,) m and rad: how a pose moves the needle away from the reference."""
        assert self._reference is not None
        shift = pose[:3, :3] @ self._point + pose[:3, 3] - (
            self._reference[:3, :3] @ self._point + self._reference[:3, 3])
        return np.concatenate(
            [shift, vector_from_rotation(pose[:3, :3] @ self._reference[:3, :3].T)])

    def _noise(self) -> Array:
        """Return the (6,) deviations of one tracked pose, at the needle."""
        sighting = self._seen[-1][0]
        arm = lever(sighting.observation.needle.tip - sighting.world_T_mount[:3, 3])
        variances = np.diag(arm @ sighting.tracking @ arm.T)
        return np.asarray(np.sqrt(np.repeat([variances[:3].max(), variances[3:].max()], 3)))

    def _step(self) -> Step | None:
        whole = (self._seen[-1][1] - self._seen[0][1]).tolist()
        if (math.hypot(*whole[:3]) < 0.5 * _LEAST_STEP
                and math.hypot(*whole[3:]) < 0.5 * _LEAST_TURN):
            return None
        poses = np.array([pose for _, pose in self._seen]).reshape(2, _HALF, 6)
        means = poses.mean(axis=1)
        step = means[1] - means[0]
        distance, angle = float(np.linalg.norm(step[:3])), float(np.linalg.norm(step[3:]))
        if distance < _LEAST_STEP and angle < _LEAST_TURN:
            return None
        noise, drift = self._noise(), (poses[:, -1] - poses[:, 0]).mean(axis=0)
        sudden = np.linalg.norm(step / noise) > _SUDDEN * np.linalg.norm(drift / noise)
        proven = np.abs(step) > _SIGMAS * (2.0 / _HALF)**0.5 * noise
        still = (np.abs(poses - means[:, None]) < _STILL * noise).all()
        found = proven.any() and still and sudden and self._same_image()
        return Step(distance, angle) if found else None

    def _same_image(self) -> bool:
        sights = [sighting.needle for sighting, _ in self._seen]
        tips = np.array([needle.tip for needle in sights]).reshape(2, _HALF, 3).mean(axis=1)
        ways = np.array([needle.direction for needle in sights]).reshape(2, _HALF, 3).mean(axis=1)
        moved, way = tips[1] - tips[0], ways[1] / np.linalg.norm(ways[1])
        return bool(np.linalg.norm(moved - (moved @ way) * way) < _SAME_PLACE
                    and angle_between(*ways) < _SAME_DIRECTION)


class JumpWatch:
    """Finds needles that lie beside where they were, all at once, and stay there.

    A needle in tissue is led aside over seconds; a patient who moves takes it along at once.
    """

    def __init__(self) -> None:
        self._before: State | None = None
        self._away: list[Points] = []

    @property
    def is_open(self) -> bool:
        """Whether one image has shown a jump, and the next ones will tell."""
        return self._before is not None

    @property
    def size(self) -> float:
        """m, of the jump that the next images will confirm or not; 0: none."""
        return float(np.linalg.norm(self._away[-1])) if self._away else 0.0

    def see(self, sighting: Sighting, before: State) -> Points | None:
        """Take what an image shows; return the (3,) m of a jump that several images agree on.

        Args:
            sighting: the needle.
            before: of the filter, before it took this needle.
        """
        since = 0 if self._before is None else sighting.stamp_ns - self._before.stamp_ns
        if self._before is None or not 0 < since < _SPAN_NS:
            self._before, self._away = before, []
        state, needle = self._before, sighting.observation.needle
        since_s = (sighting.stamp_ns - state.stamp_ns) * 1e-9
        slid = replace(state, tip=state.tip + since_s * state.speed * state.direction)
        away = within(sighting, offset(needle.tip, slid)[0])
        if (not JUMP < np.linalg.norm(away) < OTHER
                or angle_between(needle.direction, state.direction) > TURN):
            self._before, self._away = None, []
            return None
        self._away.append(away)
        if len(self._away) < ALIKE:
            return None
        together = np.array(self._away)
        self._before, self._away = None, []
        return None if np.ptp(together, axis=0).max() > JUMP else np.median(together, axis=0)


class MirrorWatch:
    """Weighs by each X-ray whether an image is mirrored, or is not any more (Page's CUSUM, 1954).

    Near the middle of its image a needle fits both ways, and an echo that ends early for a second
    may fit better with left and right swapped: so several X-rays have to tell, and ends that are
    seen soon after each other count as one.
    """

    def __init__(self) -> None:
        self._against, self._seen_ns = 0.0, 0
        self.turned = False

    def told(self) -> None:
        """Take that the needle's own track shows it mirrored."""
        self._against, self.turned = 0.0, True

    def see(self, found: Difference, other: Difference, stamp_ns: int) -> None:
        """Take how a needle fits the X-ray of a stamp as it is, and swapped; once each X-ray."""
        if stamp_ns <= self._seen_ns:
            return
        apart = min((stamp_ns - self._seen_ns) * 1e-9 / _APART_S, 1.0)
        self._seen_ns = stamp_ns
        gain = _fit(other) - _fit(found) + apart * (_end_fit(other) - _end_fit(found))
        self._against = max(self._against + (-gain if self.turned else gain), 0.0)
        if self._against > _SURE:
            self._against, self.turned = 0.0, not self.turned


def _fit(found: Difference) -> float:
    """Return the log likelihood of how a needle lies beside a shaft, or of any other place."""
    return math.log(math.exp(-0.5 * found.squared) + _ANYWHERE)


def _end_fit(found: Difference) -> float:
    """Return the same of how far in its end is: the tip, or anywhere on the shaft."""
    deviation = found.along_deviation
    peak = math.exp(-0.5 * (found.along / deviation)**2) / (math.sqrt(2.0 * math.pi) * deviation)
    return math.log((1.0 - _LOST) * peak + _LOST / _SHAFT)


def mirrored(sighting: Sighting) -> Sighting:
    """Return what the image would show with left and right swapped."""
    flip = np.diag([-1.0, 1.0, 1.0])
    pose = sighting.needle.pose.copy()
    # Also the needle's own x, so that it stays right-handed; roll means nothing.
    pose[:3, :3], pose[:3, 3] = flip @ pose[:3, :3] @ flip, flip @ pose[:3, 3]
    both = np.kron(np.diag([1.0, 0.0]), flip) + np.kron(np.diag([0.0, 1.0]), -flip)
    return replace(sighting, needle=NeedleEstimate(
        pose, both @ sighting.needle.covariance @ both.T, sighting.needle.probability))


def looks_mirrored(sighting: Sighting, state: State) -> bool:
    """Tell whether a needle is where it should be, but for left and right."""
    other = mirrored(sighting).observation.needle
    beside, along = offset(other.tip, state)
    return bool(np.linalg.norm(beside) < _MIRRORED_PLACE and abs(along) < _MIRRORED_ALONG
                and angle_between(other.direction, state.direction) < _MIRRORED_DIRECTION)


def offset(tip: Points, state: State) -> tuple[Points, float]:
    """Return how far a (3,) tip lies beside a needle (3,), and how much further in, in m."""
    away = tip - state.tip
    along = float(away @ state.direction)
    return away - along * state.direction, along


def within(sighting: Sighting, away: Points) -> Points:
    """Return the part of a (3,) vector, m, in which the image is not blind."""
    blind = blind_axis(sighting.observation.needle)
    return np.asarray(away - (away @ blind) * blind)
