"""The echo of bone against geometry and the pulse, and what fills its shadow."""

import numpy as np
import pytest

from hybrid_guidance.procedure import Probe, load_procedure
from hybrid_guidance.simulation.anatomy import Grid, empty_patient
from hybrid_guidance.simulation.beams import COARSE, Beams, Scan
from hybrid_guidance.simulation.bone_echo import Surface
from hybrid_guidance.simulation.clutter import Clutter
from hybrid_guidance.simulation.tissues import Tissue
from hybrid_guidance.simulation.ultrasound import UltrasoundRenderer

LINEAR = Probe('linear', float('inf'), 0.040, 8e6)
DEEP = 0.030


def profile(tilt: float = 0.0, slope: float = 0.0, deep: float = DEEP) -> tuple[np.ndarray, float]:
    """Return the mean power along the beams, aligned to true ranges, and metres a sample.

    Args:
        tilt: radians, of a plane of bone across the slice.
        slope: likewise, in the slice.
        deep: range of the plane in the middle beam, metres.
    """
    grid = Grid.covering(np.array([-0.03, -0.01, -0.01]), np.array([0.03, 0.06, 0.01]), 0.0007)
    x, y, z = grid.axes()
    inside = (y - deep - np.tan(slope) * x - np.tan(tilt) * z) / np.sqrt(
        1.0 + np.tan(slope) ** 2 + np.tan(tilt) ** 2)
    bone = (255.0 * np.clip(0.5 + inside / grid.spacing, 0.0, 1.0)).astype(np.uint8)
    labels = np.where(inside > 0.0, Tissue.CORTICAL, Tissue.FLUID).astype(np.uint8)
    patient = empty_patient(grid, labels=labels, bone=bone)
    scanner = UltrasoundRenderer(patient, LINEAR,
                                 load_procedure('lumbar_facet_injection').ultrasound_projection())
    envelope = scanner.envelope(np.eye(4), noise=False)
    beams = scanner.beams
    offsets = np.arange(-0.003, 0.003, beams.step / 4)
    lines = [np.interp(deep + np.tan(slope) * beams.angles[beam] + offsets, beams.ranges,
                       envelope[:, beam] ** 2) for beam in range(30, beams.shape[1] - 30)]
    return np.mean(lines, axis=0), float(beams.step / 4)


def place_and_width(power: np.ndarray, step: float) -> tuple[float, float]:
    """Return where an echo's middle is off the middle, and its width at half amplitude, metres."""
    strong = np.flatnonzero(power > power.max() / 4.0)
    middle = (power * np.arange(len(power))).sum() / power.sum()
    return float(middle - len(power) / 2) * step, float(strong[-1] - strong[0] + 1) * step


@pytest.mark.parametrize('deep', [0.0300, 0.0302, 0.0304, 0.0306])
def test_bone_square_to_the_beam_is_as_thick_as_the_pulse(deep: float) -> None:
    """Voxels of 0.7 mm and rows of 0.6 mm must not shift a surface, nor thicken it by a sample."""
    power, step = profile(deep=deep)
    off, width = place_and_width(power, step)
    assert abs(off) < 0.0001
    assert 0.0 <= width - 2.355 * Scan().pulse < 4.0 * step


@pytest.mark.parametrize('slope', [-0.5, 0.3, 0.7])
def test_inclined_bone_is_where_it_is(slope: float) -> None:
    off, _ = place_and_width(*profile(slope=slope))
    assert abs(off) < 0.00015


def test_bone_inclined_across_the_slice_is_thicker_and_darker() -> None:
    """Beam and slice hold a surface that begins nearer and ends farther than its middle."""
    flat, step = profile()
    tilted, _ = profile(tilt=0.6)
    assert tilted.max() < 0.5 * flat.max()

    def spread(power: np.ndarray) -> float:
        places = np.arange(len(power)) * step
        middle = (power * places).sum() / power.sum()
        return float(np.sqrt((power * (places - middle) ** 2).sum() / power.sum()))
    assert spread(tilted) > 1.3 * spread(flat)


def cluttered(square: float) -> tuple[np.ndarray, Beams]:
    """Return the clutter of a bright row 12 rows above a plane of bone in the 60th."""
    beams = Beams(LINEAR, Scan())
    columns = np.arange(beams.shape[1])
    echo = np.zeros((len(beams.coarse), beams.shape[1]), np.float32)
    echo[47] = 1.0
    surface = Surface(np.full(len(columns), 59), columns, np.full(len(columns), 59.5 * COARSE),
                      np.full(len(columns), square), np.zeros(len(columns)),
                      np.zeros(len(columns)))
    before = echo.copy()
    Clutter(beams).add(echo, surface, np.zeros(len(columns)))
    return echo - before, beams


def test_bone_mirrors_what_lies_above_it_as_far_below() -> None:
    image, _ = cluttered(1.0)
    below = image[62:].mean(axis=1)
    assert 62 + int(np.argmax(below)) == 59 + 60 - 47
    assert below.max() > 5.0 * np.median(below)


def test_bone_that_is_not_square_mirrors_past_the_probe() -> None:
    image, _ = cluttered(float(np.cos(0.5)))
    assert image[72].mean() == pytest.approx(np.sqrt(image[71].mean() * image[73].mean()), rel=0.05)


def test_late_sound_fades_over_five_millimetres() -> None:
    late, beams = cluttered(0.5)
    rate = np.polyfit(beams.coarse[50:100], np.log(late[50:100].mean(axis=1)), 1)[0]
    assert -1.0 / rate == pytest.approx(0.005, rel=0.02)
