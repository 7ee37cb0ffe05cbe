from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import chi2

from hybrid_guidance.detection.lift import lift
from hybrid_guidance.detection.needle import PixelNeedle
from hybrid_guidance.fusion.consistency import Agreement, Consistency, Difference, difference
from hybrid_guidance.fusion.holder import Motion
from hybrid_guidance.fusion.observe import Sighting
from hybrid_guidance.geometry.needle import NeedleEstimate
from hybrid_guidance.geometry.projection import Projection
from hybrid_guidance.geometry.rigid import inverse, perturbed, pose_along, transform

XRAY = Projection.perspective((3400.0, 3400.0), (511.5, 511.5), (1024, 1024))
PIXELS = np.array([0.5, 0.4, 0.003])
SLICE_NOISE = np.array([0.3e-3, 0.3e-3, 1.2e-3, 0.06, 0.06, 0.01])
CALIBRATION = {'ultrasound': np.array([2e-4] * 3 + [2e-3] * 3),
               'fluoroscopy': np.array([2e-4] * 3 + [3e-4] * 3)}
TRACKING = {'ultrasound': np.array([1e-4] * 3 + [1e-3] * 3),
            'fluoroscopy': np.array([1e-4] * 3 + [2e-4] * 3)}
MOUNTED = {'ultrasound': transform(translation=np.array([0.0, 0.085, 0.012])),
           'fluoroscopy': transform(translation=np.array([0.0, 0.12, 0.2]))}
MOTION = Motion(tip=0.0008, direction=0.01)
NEEDLE = pose_along(np.array([0.004, 0.05, 0.001]), np.array([0.7, 0.7, 0.1]))
"""In the frame of the true slice, which is the world."""
LOOK = np.array([0.2, -0.1, 1.0]) / np.linalg.norm([0.2, -0.1, 1.0])
BEAM = pose_along(NEEDLE[:3, 3] - 0.62 * LOOK, LOOK)


class Draw:
    """Two images of one needle, with every error drawn from what is stated of it."""

    def __init__(self, seed: int, age: float = 0.0, wrong: float = 1.0) -> None:
        self.random = np.random.default_rng(seed)
        self.wrong, self.age = wrong, age

    def _sighting(self, name: str, sensor: np.ndarray, needle: NeedleEstimate,
                  time: float) -> Sighting:
        """Truth: ``sensor``; believed: tracked mount and calibration, both wrong as stated."""
        error = self.random.standard_normal((2, 6)) * [CALIBRATION[name], TRACKING[name]]
        mount = sensor @ inverse(perturbed(MOUNTED[name], self.wrong * error[0]))
        return Sighting(name, int(time * 1e9), needle, MOUNTED[name], perturbed(mount, error[1]),
                        np.diag(TRACKING[name]**2), mount_covariance(name))

    def ultrasound(self) -> Sighting:
        seen = perturbed(NEEDLE, self.random.standard_normal(6) * SLICE_NOISE)
        return self._sighting('ultrasound', np.eye(4), NeedleEstimate(
            seen, np.diag(SLICE_NOISE**2)), 10.0 + self.age)

    def fluoroscopy(self) -> Sighting:
        """Earlier by ``age``, when the needle lay beside, and further out."""
        noise = self.random.standard_normal(6) * abs(self.age)**0.5 * (
            [MOTION.tip] * 3 + [MOTION.direction] * 3)
        then = perturbed(NEEDLE, noise)
        then[:3, 3] -= 0.003 * NEEDLE[:3, 2]
        there = inverse(BEAM) @ then
        tip, back = XRAY.pixels(np.stack([there[:3, 3], there[:3, 3] - 1e-3 * there[:3, 2]]))
        shaft = PixelNeedle(tip, (tip - back) / np.linalg.norm(tip - back), 300.0,
                            np.diag(PIXELS**2), 1.0)
        along, across, angle = self.random.standard_normal(3) * PIXELS
        turned = shaft.direction + angle * shaft.normal
        shaft = replace(shaft, tip=tip + along * shaft.direction + across * shaft.normal,
                        direction=turned / np.linalg.norm(turned))
        return self._sighting('fluoroscopy', BEAM, lift(shaft, XRAY, depth=0.55), 10.0)

    def difference(self) -> Difference:
        return difference(self.ultrasound(), self.fluoroscopy(), XRAY, MOTION)


def mount_covariance(name: str) -> np.ndarray:
    return np.diag(CALIBRATION[name]**2)


@pytest.mark.parametrize('age', [0.0, 2.0, -0.5])
def test_sigma_is_true_for_consistent_images(age: float) -> None:
    """χ²: means and the share beyond the 95 % quantile inside their own 99.9 % bands."""
    count = 500
    found = [Draw(seed, age).difference() for seed in range(count)]
    squared = np.array([one.squared for one in found])
    single = np.array([one.sigma**2 for one in found])
    low, high = chi2.ppf([0.0005, 0.9995], 2 * count) / count
    assert low < squared.mean() < high
    low, high = chi2.ppf([0.0005, 0.9995], count) / count
    assert low < single.mean() < high
    beyond = np.mean(squared > chi2.ppf(0.95, 2))
    assert abs(beyond - 0.05) < 3.3 * (0.05 * 0.95 / count)**0.5


def test_calibration_errors_larger_than_stated_make_sigma_untrue() -> None:
    """Negative control of the test above."""
    squared = [Draw(seed, wrong=2.5).difference().squared for seed in range(300)]
    assert np.mean(squared) > 2.0 * 1.3


def test_pixels_are_those_between_tip_and_shaft() -> None:
    """Closed form: 2 mm along the rays' normal, seen from 0.62 m at 3400 px."""
    draw = Draw(1)
    draw.random = type('Zero', (), {'standard_normal': lambda _, size: np.zeros(size)})()
    sideways = np.cross(LOOK, NEEDLE[:3, 2])
    sideways /= np.linalg.norm(sideways)
    seen, line = draw.ultrasound(), draw.fluoroscopy()
    assert difference(seen, line, XRAY, MOTION).pixels == pytest.approx(0.0, abs=1e-6)
    seen.needle.pose[:3, 3] += 0.002 * sideways
    moved = difference(replace(seen), line, XRAY, MOTION)
    assert abs(moved.pixels) == pytest.approx(0.002 * 3400 / 0.62, rel=0.01)
    assert moved.millimetres == pytest.approx(2.0, rel=0.01)


def test_a_needle_that_slid_along_itself_still_fits() -> None:
    draw = Draw(4)
    seen, line = draw.ultrasound(), draw.fluoroscopy()
    before = difference(seen, line, XRAY, MOTION)
    seen.needle.pose[:3, 3] += 0.010 * seen.needle.direction
    after = difference(replace(seen), line, XRAY, MOTION)
    assert after.along - before.along == pytest.approx(0.010, rel=0.05)
    assert not after.contradicts


def misplaced(sighting: Sighting, distance: float = 0.012) -> Sighting:
    sideways = np.cross(LOOK, NEEDLE[:3, 2])
    pose = sighting.needle.pose.copy()
    pose[:3, 3] += distance * sideways / np.linalg.norm(sideways)
    return replace(sighting, needle=replace(sighting.needle, pose=pose))


def at(sighting: Sighting, time: float) -> Sighting:
    return replace(sighting, stamp_ns=int(time * 1e9))


def test_states_follow_what_was_seen_and_when() -> None:
    draw, consistency = Draw(2), Consistency(MOTION)
    assert consistency.state(int(1e9)) is Agreement.NONE
    consistency.see(at(draw.ultrasound(), 1.0))
    assert consistency.state(int(1.1e9)) is Agreement.ONLY_ONE
    consistency.see(at(draw.fluoroscopy(), 1.1), XRAY)
    assert consistency.state(int(1.2e9)) is Agreement.CONSISTENT
    assert consistency.state(int(2.0e9)) is Agreement.ONLY_ONE
    assert consistency.state(int(9.0e9)) is Agreement.NONE


def test_one_outlier_is_no_contradiction_but_three_images_are() -> None:
    draw, consistency = Draw(3), Consistency(MOTION)
    consistency.see(at(draw.fluoroscopy(), 1.0), XRAY)
    consistency.see(at(misplaced(draw.ultrasound()), 1.01))
    assert consistency.state(int(1.02e9)) is Agreement.CONSISTENT
    for time in (1.04, 1.07):
        consistency.see(at(misplaced(draw.ultrasound()), time))
    assert consistency.state(int(1.08e9)) is Agreement.CONTRADICTING


def test_a_contradiction_is_not_forgotten_because_the_xray_grows_old() -> None:
    """5 mm at once are a contradiction; seconds later they might be movement, but were not."""
    draw, consistency = Draw(5), Consistency(MOTION)
    consistency.see(at(draw.fluoroscopy(), 1.0), XRAY)
    for time in np.arange(1.01, 5.0, 0.1):
        consistency.see(at(misplaced(draw.ultrasound()), time))
    assert not consistency.difference.deviation < 1.5 * 5
    assert consistency.state(int(5.0e9)) is Agreement.CONTRADICTING


def test_images_that_agree_again_end_the_contradiction() -> None:
    draw, consistency = Draw(6), Consistency(MOTION)
    consistency.see(at(draw.fluoroscopy(), 1.0), XRAY)
    for time in (1.01, 1.04, 1.07):
        consistency.see(at(misplaced(draw.ultrasound()), time))
    consistency.see(at(draw.ultrasound(), 1.98))
    consistency.see(at(draw.fluoroscopy(), 2.0), XRAY)
    assert consistency.state(int(2.1e9)) is Agreement.CONSISTENT
