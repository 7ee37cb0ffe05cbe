"""How a simulated patient moves, breathing or shifting, and how a probe is swept and trembles."""

from dataclasses import dataclass
from functools import cache

import numpy as np

from hybrid_guidance.geometry.rigid import perturbed, rotation_from_vector, transform
from hybrid_guidance.geometry.types import Array, Points, Transform

# Where the anatomy of a region goes with an intake of breath, in ``patient`` (left, posterior,
# head), and how far, metres. Prone, the back rises by some millimetres (Ozhasoglu and Murphy, Int
# J Radiat Oncol Biol Phys 2002;52:1389); the shoulder rides on the rib cage; the hip hardly moves.
# Orders of magnitude, from no measured subject.
BREATHING: dict[str, tuple[float, float, float]] = {
    'lumbar': (0.0, 0.0035, -0.0015),
    'hip': (0.0, -0.0005, -0.0005),
    'shoulder': (0.0, -0.0015, 0.0025),
}


@dataclass(frozen=True)
class Motion:
    """The rigid motion of a patient; by default none.

    Attributes:
        breath: (3,) displacement at full intake, in ``patient``, metres.
        phase: of the first breath, radians.
        shift: (3,) displacement after the sudden shift, in ``patient``, metres.
        shift_time: when that is, seconds after the start.
        period: of a breath, seconds.
    """

    breath: Points
    phase: float
    shift: Points
    shift_time: float
    period: float = 4.0

    def at(self, seconds: float) -> Transform:
        """Return ``rest_T_patient``: where the patient is, seen from where it lies at rest.

        Breath stays longest at its end, where the patient is at rest: cos⁴ (Lujan et al., Med
        Phys 1999;26:715).
        """
        intake = np.cos(np.pi * seconds / self.period + self.phase) ** 4
        offset: Array = np.asarray(self.breath, dtype=float) * intake
        if seconds >= self.shift_time:
            offset = offset + self.shift
        return transform(translation=offset)


def make_motion(region: str, seed: int, breathing: float = 0.0, shift: float = 0.0,
                shift_time: float = 0.0) -> Motion:
    """Return the motion of a patient.

    Args:
        region: of the anatomy; one that is not in ``BREATHING`` moves like ``lumbar``.
        seed: of phase and direction.
        breathing: 1 is the region's amplitude, 0 holds the breath.
        shift: how far the patient slips at ``shift_time``, metres, in a drawn direction.
        shift_time: seconds after the start.
    """
    random = np.random.default_rng([seed, 0x0a4])
    phase, direction = random.uniform(0.0, np.pi), random.standard_normal(3)
    breath = breathing * np.array(BREATHING.get(region, BREATHING['lumbar']))
    return Motion(breath, float(phase), shift * direction / np.linalg.norm(direction), shift_time)


def probe_sweep(seconds: float, reach: float, speed: float = 0.012) -> Transform:
    """Return ``image_T_swept``: where a hand has a slice that it sweeps over bone.

    To and fro across the slice while it rocks and wanders to the image's left and back, as a
    freehand sweep does: from beside a spine over its processes to the other side.

    Args:
        seconds: since the probe was in the middle.
        reach: metres to either side; 0 holds still.
        speed: metres per second.
    """
    passes = speed * seconds / max(2.0 * reach, 1e-9)
    across = 2.0 / np.pi * np.arcsin(np.sin(np.pi * passes))
    aside = 0.6 * (np.cos(2.0 * np.pi * passes / 3.0) - 1.0)
    rock = np.radians(8.0 * np.sin(2.0 * np.pi * 0.7 * passes)) * bool(reach)
    return transform(rotation_from_vector(np.array([rock, 0.0, 0.0])),
                     reach * np.array([aside, 0.0, across]))


def probe_tremor(seconds: float, deviation: float, seed: int = 0) -> Transform:
    """Return ``image_T_shaken``: where a hand has a slice that it means to hold.

    It wanders slowly, and trembles at 8 to 12 Hz (physiological tremor: Elble and Koller, Tremor,
    1990) with a tenth of the power. No measured hand: the sizes are a parameter.

    Args:
        seconds: at any moment.
        deviation: standard deviation of the place, along each axis, metres; the turn goes with it
            as if the hand held the probe 5 cm away. 0 holds still.
        seed: which hand.
    """
    frequencies, phases = _shaking(seed)
    waves = _TREMOR[:, None] * np.sin(2.0 * np.pi * frequencies * seconds + phases)
    offset = deviation * waves.sum(axis=0)
    offset[3:] /= 0.05
    return perturbed(np.eye(4), offset)


# Amplitudes of four slow waves and of two quick ones: together of unit variance.
_TREMOR = np.sqrt(2.0 * np.array([0.9 / 4] * 4 + [0.1 / 2] * 2))


@cache
def _shaking(seed: int) -> tuple[Array, Array]:
    """Return the frequencies, Hz, and phases of the waves of every degree of freedom, (6, 6)."""
    random = np.random.default_rng([seed, 0x0a5])
    frequencies = np.vstack([random.uniform(0.2, 2.0, (4, 6)), random.uniform(8.0, 12.0, (2, 6))])
    return frequencies, random.uniform(0.0, 2.0 * np.pi, (6, 6))
