import numpy as np
import pytest

from hybrid_guidance.fusion.patient_shift import AnatomyMotion, PatientShift
from hybrid_guidance.geometry.projection import Projection
from hybrid_guidance.geometry.rigid import perturbed, transform

PROJECTION = Projection.perspective((3400.0, 3400.0), (511.5, 511.5), (1024, 1024))
TRACKING = np.array([1e-4] * 3 + [2e-4] * 3)
MOUNTED = transform(translation=np.array([0.0, 0.0, 0.1]))
POINT = np.array([0.01, 0.0, 0.7])
MILLIMETRE = 3400.0 / 0.6 * 1e-3
"""px of 1 mm at the point, which is 0.6 m from the source."""


class Xrays:
    """A C-arm at rest whose X-rays show anatomy that moved."""

    def __init__(self, seed: int = 0) -> None:
        self.random, self.patient = np.random.default_rng(seed), PatientShift()
        self.show(0.0, deviation=0.0)

    def show(self, u: float, v: float = 0.0, deviation: float = 0.5,
             carm: np.ndarray | None = None) -> None:
        noise = deviation * self.random.standard_normal(2)
        mount = np.eye(4) if carm is None else carm
        self.patient.see(AnatomyMotion(
            np.array([u + noise[0], v + noise[1], deviation]), PROJECTION, MOUNTED,
            np.diag(TRACKING**2), perturbed(mount, TRACKING * self.random.standard_normal(6))),
            POINT)


@pytest.mark.parametrize('seed', range(5))
def test_a_patient_who_moved_3_mm_is_known_from_the_first_xray_that_shows_it(seed: int) -> None:
    xrays = Xrays(seed)
    for _ in range(5):
        xrays.show(0.0)
    assert xrays.patient.fault is None
    xrays.show(2.4 * MILLIMETRE, 1.8 * MILLIMETRE)
    assert xrays.patient.fault.grave
    assert 'patient has moved by' in xrays.patient.fault.words
    assert xrays.patient.doubt == pytest.approx(0.003, abs=6e-4)


def test_a_patient_who_slides_slowly_is_found_in_the_sum() -> None:
    xrays = Xrays(1)
    for _ in range(12):
        xrays.show(0.25 * MILLIMETRE)
    assert xrays.patient.doubt > 0.001


def test_a_patient_at_rest_is_not_said_to_move_in_a_hundred_procedures() -> None:
    """30 X-rays each; 5 σ and 1 mm."""
    alarms = 0
    for seed in range(100):
        xrays = Xrays(1000 + seed)
        for _ in range(30):
            xrays.show(0.0)
        alarms += xrays.patient.fault is not None
    assert alarms == 0


def test_a_c_arm_that_moved_tells_nothing_of_the_patient() -> None:
    xrays = Xrays(2)
    xrays.show(0.0)
    xrays.show(10.0 * MILLIMETRE, carm=transform(translation=np.array([0.01, 0.0, 0.0])))
    assert xrays.patient.fault is None


def test_a_jump_of_the_needle_alone_is_taken_back_by_an_xray_that_would_show_it() -> None:
    xrays = Xrays(3)
    xrays.patient.jumped(np.array([0.003, 0.0, 0.0]), 'ultrasound')
    assert xrays.patient.doubt == pytest.approx(0.003)
    assert 'or the needle in it' in xrays.patient.fault.words
    xrays.show(0.0)
    assert xrays.patient.fault is None
    assert xrays.patient.doubt == 0.0


def test_a_jump_along_the_rays_stays_in_doubt() -> None:
    xrays = Xrays(4)
    xrays.patient.jumped(np.array([0.0, 0.0, 0.003]), 'ultrasound')
    xrays.show(0.0)
    assert xrays.patient.doubt == pytest.approx(0.003)
