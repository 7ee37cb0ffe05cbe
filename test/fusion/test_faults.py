from dataclasses import replace

import numpy as np
import pytest

from hybrid_guidance.fusion.consistency import Difference
from hybrid_guidance.fusion.faults import (
    JumpWatch,
    MarkerWatch,
    MirrorWatch,
    looks_mirrored,
    mirrored,
)
from hybrid_guidance.fusion.needle_filter import State
from hybrid_guidance.fusion.observe import Sighting
from hybrid_guidance.geometry.needle import NeedleEstimate
from hybrid_guidance.geometry.rigid import angle_between, perturbed, pose_along, transform

TRACKING = np.array([1e-4] * 3 + [1e-3] * 3)
NOISE = np.array([2e-4, 2e-4, 1.3e-3, 0.05, 0.05, 0.008])
MOUNTED = transform(translation=np.array([0.0, 0.085, 0.012]))
MOUNT = perturbed(np.eye(4), np.array([0.1, 0.2, 0.9, 0.3, -0.2, 0.5]))
TIP, WAY = np.array([0.008, 0.05, 0.0]), np.array([-0.63, 0.77, 0.0])


class Images:
    """Ultrasound images at 30 Hz of a probe that stands where it is told to."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.time = 1.0

    def next(self, mount: np.ndarray = MOUNT, tip: np.ndarray = TIP,
             way: np.ndarray = WAY) -> Sighting:
        self.time += 1.0 / 30.0
        seen = NOISE * [1.0, 1.0, 0.0, 0.0, 0.0, 1.0] * self.random.standard_normal(6)
        return Sighting('ultrasound', int(self.time * 1e9), NeedleEstimate(
            perturbed(pose_along(tip, way), seen), np.diag(NOISE**2)), MOUNTED,
            perturbed(mount, TRACKING * self.random.standard_normal(6)), np.diag(TRACKING**2),
            np.diag([2e-4**2] * 3 + [2e-3**2] * 3))


def state(sighting: Sighting) -> State:
    needle = sighting.observation.needle
    return State(sighting.stamp_ns - 33_000_000, needle.tip, needle.direction, 0.0,
                 0.0, 1.0, np.zeros((2, 6)), np.ones(2), (0, 0), np.eye(19))


@pytest.mark.parametrize('seed', range(10))
def test_a_marker_that_slips_by_2_degrees_is_found_in_three_images(seed: int) -> None:
    images, watch = Images(seed), MarkerWatch()
    axis = images.random.standard_normal(3)
    slip = perturbed(np.eye(4), np.concatenate(
        [np.zeros(3), np.deg2rad(2.0) * axis / np.linalg.norm(axis)]))
    assert all(watch.see(images.next()) is None for _ in range(10))
    found = [watch.see(images.next(MOUNT @ slip)) for _ in range(3)]
    assert found[:2] == [None, None]
    assert np.rad2deg(found[2].angle) == pytest.approx(2.0, abs=0.3)


def test_no_marker_is_said_to_slip_in_a_minute_of_a_probe_at_rest() -> None:
    images, watch = Images(101), MarkerWatch()
    assert all(watch.see(images.next()) is None for _ in range(1800))


def test_a_probe_that_a_hand_turns_by_as_much_is_not_slipping() -> None:
    """2° within 0.3 s, and the image does not even follow."""
    images, watch = Images(2), MarkerWatch()
    for step in range(40):
        turned = np.deg2rad(2.0) * min(max(step - 15, 0) / 9.0, 1.0)
        assert watch.see(images.next(MOUNT @ perturbed(
            np.eye(4), np.array([0.0, 0.0, 0.0, 0.0, 0.0, turned])))) is None


def test_a_step_that_the_image_shares_is_no_slip() -> None:
    """The tracker lost sight while the probe moved: the needle is elsewhere in the image."""
    images, watch = Images(3), MarkerWatch()
    found = [watch.see(images.next()) for _ in range(6)]
    found += [watch.see(images.next(MOUNT @ transform(translation=np.array([0.004, 0.0, 0.0])),
                                    TIP - [0.004, 0.0, 0.0])) for _ in range(6)]
    assert found == [None] * 12


def test_a_needle_that_jumps_and_stays_is_told_with_its_distance() -> None:
    images, watch = Images(4), JumpWatch()
    before = state(images.next())
    aside = 0.003 * np.array([WAY[1], -WAY[0], 0.0])
    found = [watch.see(images.next(tip=TIP + aside), before) for _ in range(3)]
    assert found[:2] == [None, None]
    assert np.linalg.norm(found[2]) == pytest.approx(0.003, abs=4e-4)


@pytest.mark.parametrize('end', [0.0, 0.002])
def test_what_lies_beside_the_slice_has_not_jumped_however_unsure_its_end_is(end: float) -> None:
    images, watch = Images(7), JumpWatch()
    before = state(images.next())
    for _ in range(3):
        seen = images.next(tip=TIP + [0.0, 0.0, 0.002])
        along = seen.needle.direction
        seen.needle.covariance[:3, :3] += end**2 * np.outer(along, along)
        assert watch.see(seen, before) is None
    assert not watch.is_open


def test_a_needle_that_jumps_and_comes_back_was_an_outlier() -> None:
    images, watch = Images(5), JumpWatch()
    before = state(images.next())
    assert watch.see(images.next(tip=TIP + [0.003, 0.0, 0.0]), before) is None
    assert watch.is_open
    assert watch.size > 0.001
    assert watch.see(images.next(), before) is None
    assert not watch.is_open
    assert watch.size == 0.0


def test_another_line_in_the_image_is_no_jump_of_the_needle() -> None:
    images, watch = Images(6), JumpWatch()
    before = state(images.next())
    assert [watch.see(images.next(tip=TIP + [0.003, 0.0, 0.0], way=np.array([-0.5, 0.86, 0.0])),
                      before) for _ in range(4)] == [None] * 4


def test_mirroring_twice_changes_nothing_and_keeps_handedness() -> None:
    sighting = Images(7).next()
    other = mirrored(sighting)
    assert np.linalg.det(other.needle.pose[:3, :3]) == pytest.approx(1.0)
    assert other.needle.tip == pytest.approx(sighting.needle.tip * [-1.0, 1.0, 1.0])
    assert np.allclose(mirrored(other).needle.pose, sighting.needle.pose)
    assert np.allclose(mirrored(other).needle.covariance, sighting.needle.covariance)


def test_a_mirrored_needle_is_known_by_where_it_should_be() -> None:
    images = Images(8)
    true = images.next()
    swapped = replace(true, needle=mirrored(images.next()).needle)
    assert looks_mirrored(swapped, state(true))
    assert not looks_mirrored(images.next(), state(true))
    assert angle_between(swapped.observation.needle.direction,
                         true.observation.needle.direction) > 1.0


def fit(squared: float, along: float) -> Difference:
    """Return a comparison of a needle with an X-ray, its end known to 1 mm."""
    return Difference(0, 0.0, 1.0, squared, along, 1e-3, 0.0, 0.0)


def turned_after(watch: MirrorWatch, found: Difference, other: Difference, every: float) -> float:
    """Return after how many seconds of X-rays the watch has changed its mind; 99 if never."""
    before, begin = watch.turned, watch._seen_ns
    for number in range(1, 200):
        watch.see(found, other, begin + round(number * every * 1e9))
        if watch.turned != before:
            return number * every
    return 99.0


def test_a_shaft_that_fits_swapped_only_is_mirrored_after_a_few_xrays() -> None:
    assert turned_after(MirrorWatch(), fit(60.0, 0.02), fit(2.0, 0.0), 1.0) <= 3.0
    assert turned_after(MirrorWatch(), fit(2.0, 0.0), fit(60.0, 0.02), 1.0) == 99.0


def test_an_echo_that_ends_early_for_a_second_is_not_mirrored() -> None:
    """Across both ways fit; its end, 14 mm short, fits better swapped, in X-rays 0.4 s apart."""
    watch = MirrorWatch()
    watch.see(fit(2.0, 0.0), fit(4.0, 0.004), 10**9)
    for number in range(1, 4):
        watch.see(fit(2.0, -0.014), fit(2.0, -0.001), 10**9 + round(0.4e9 * number))
    assert not watch.turned


def test_of_a_needle_that_fits_both_ways_its_end_tells_in_seconds_that_it_is_not_mirrored() -> None:
    watch = MirrorWatch()
    watch.told()
    assert watch.turned
    assert turned_after(watch, fit(2.0, 0.0), fit(2.0, 0.006), 0.4) < 5.0
    assert turned_after(watch, fit(2.0, 0.0), fit(2.0, 0.006), 0.4) == 99.0


def test_an_xray_counts_once() -> None:
    watch = MirrorWatch()
    for _ in range(100):
        watch.see(fit(60.0, 0.02), fit(2.0, 0.0), 10**9)
    assert not watch.turned
