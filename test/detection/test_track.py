"""A needle followed from image to image, against truth and against a detector without memory."""

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest

from hybrid_guidance.detection.needle import PixelNeedle
from hybrid_guidance.detection.ridge import LineSearch
from hybrid_guidance.detection.track import Track, geometry
from hybrid_guidance.detection.ultrasound import UltrasoundNeedleDetector
from hybrid_guidance.detection.xray import XrayNeedleDetector

from .conftest import (
    Scene,
    as_frame,
    is_honest,
    pixel_errors,
    ultrasound_scene,
    xray_scene,
)

MODALITIES = [pytest.param(XrayNeedleDetector, xray_scene, id='xray'),
              pytest.param(UltrasoundNeedleDetector, ultrasound_scene, id='ultrasound')]
SEEDS = range(6)
PERIOD = 15

Scenes = Callable[..., Scene]


@cache
def certain_seeds(detector: type, scenes: Scenes) -> list[int]:
    """Return the seeds whose needle a detector without memory finds and is sure of."""
    needles = {seed: detector()(scenes(seed).frame) for seed in SEEDS}
    return [seed for seed, needle in needles.items()
            if needle is not None and needle.probability >= 0.9]


@pytest.fixture
def searches(monkeypatch) -> list[int]:
    """A list that grows by one with every full search."""
    calls: list[int] = []
    search = LineSearch.__call__

    def counted(self, *arguments):
        calls.append(1)
        return search(self, *arguments)
    monkeypatch.setattr(LineSearch, '__call__', counted)
    return calls


@pytest.mark.parametrize(('detector', 'scenes'), MODALITIES)
def test_followed_needle_is_where_a_detector_without_memory_finds_it(
        detector: type, scenes: Scenes) -> None:
    seeds = certain_seeds(detector, scenes)
    assert len(seeds) >= len(SEEDS) / 2
    errors, covariances = [], []
    for seed in seeds:
        follow = detector()
        for along in np.arange(0.0, 15.0, 3.0):
            scene = scenes(seed, step=(along, 0.3 * np.sin(along)))
            tracked, fresh = follow(scene.frame), detector()(scene.frame)
            if fresh is not None:
                assert tracked is not None
                errors.append([pixel_errors(scene, tracked), pixel_errors(scene, fresh)])
                covariances.append(tracked.covariance)
    tracked_errors, fresh_errors = np.abs(np.array(errors)).transpose(1, 0, 2)
    apart = np.abs(np.diff(np.array(errors), axis=1))[:, 0]
    assert np.percentile(apart[:, :2], 90) < 0.25
    assert is_honest(np.array(errors)[:, 0], np.array(covariances))
    assert np.max(apart[:, :2]) < 1.0
    assert np.rad2deg(np.max(apart[:, 2])) < 0.3
    assert np.all(tracked_errors.mean(axis=0) < 1.1 * fresh_errors.mean(axis=0))


@pytest.mark.parametrize(('detector', 'scenes'), MODALITIES)
def test_needle_that_goes_in_is_seldom_searched_for(
        detector: type, scenes: Scenes, searches: list[int]) -> None:
    seed = certain_seeds(detector, scenes)[0]
    frames = [scenes(seed, step=(along, 0.0)).frame for along in np.arange(0.0, 20.0)]
    searches.clear()
    follow = detector()
    assert all(follow(frame) is not None for frame in frames)
    assert len(searches) == 2


@pytest.mark.parametrize(('detector', 'scenes'), MODALITIES)
def test_needle_that_vanishes_is_not_reported_once(detector: type, scenes: Scenes) -> None:
    for seed in certain_seeds(detector, scenes):
        follow = detector()
        follow(scenes(seed).frame)
        assert follow(scenes(seed, step=(1.0, 0.0)).frame) is not None
        gone = follow(scenes(seed, needle=False).frame)
        assert gone is None or gone.probability < 0.5


@pytest.mark.parametrize(('detector', 'scenes'), MODALITIES)
@pytest.mark.parametrize('jump', [(0.0, 55.0), (-40.0, 0.0), (20.0, -8.0)])
def test_needle_that_jumps_is_found_in_the_same_image(
        detector: type, scenes: Scenes, jump: tuple[float, float]) -> None:
    found = 0
    seeds = certain_seeds(detector, scenes)
    for seed in seeds:
        follow = detector()
        follow(scenes(seed).frame)
        scene = scenes(seed, step=jump)
        needle = follow(scene.frame)
        alone = detector()(scene.frame)
        # Where it has jumped to may be hard to see in: no worse than without memory.
        if alone is not None:
            assert needle is not None
            assert np.linalg.norm(needle.tip - alone.tip) < 0.5
            found += needle.probability >= 0.5
    assert found >= len(seeds) / 2


def test_image_of_another_size_is_searched() -> None:
    follow = UltrasoundNeedleDetector()
    assert follow(ultrasound_scene(1).frame) is not None
    scene = ultrasound_scene(1, shape=(616, 820))
    needle = follow(scene.frame)
    assert needle is not None
    assert np.linalg.norm(needle.tip - scene.tip) < 5.0


def needle_at(u: float, probability: float) -> PixelNeedle:
    return PixelNeedle(np.array([u, 100.0]), np.array([0.0, 1.0]), 80.0, np.eye(3), probability)


def frames_until(u: float, near: PixelNeedle, elsewhere: PixelNeedle) -> int:
    """Return after how many frames a track that begins on one needle reports another."""
    track = Track(PERIOD)
    answers = iter([near] + 100 * [elsewhere])
    for frame in range(100):
        needle = track('image', lambda segment: near, lambda: next(answers))
        assert needle is not None
        if needle.tip[0] == u:
            return frame
    return 100


def test_wrong_needle_is_not_followed_for_ever() -> None:
    assert frames_until(300.0, needle_at(50.0, 0.99), needle_at(300.0, 0.99)) == PERIOD


def test_the_less_certain_needle_is_doubted_sooner() -> None:
    assert frames_until(300.0, needle_at(50.0, 0.8), needle_at(300.0, 0.9)) == 4
    assert frames_until(300.0, needle_at(50.0, 0.4), needle_at(300.0, 0.9)) == 1


@pytest.mark.parametrize('near', [
    None, needle_at(50.0, 0.7), needle_at(57.0, 0.99),
    PixelNeedle(np.array([50.0, 116.0]), np.array([0.0, 1.0]), 96.0, np.eye(3), 0.99),
    PixelNeedle(np.array([50.0, 100.0]), np.array([0.1, 0.995]), 80.0, np.eye(3), 0.99),
    PixelNeedle(np.array([50.0, 100.0]), np.array([0.0, -1.0]), 80.0, np.eye(3), 0.99)])
def test_what_does_not_go_on_from_the_last_image_is_searched_for(near) -> None:
    track = Track(PERIOD)
    track('image', lambda segment: None, lambda: needle_at(50.0, 0.95))
    elsewhere = needle_at(300.0, 0.95)
    assert track('image', lambda segment: near, lambda: elsewhere) is elsewhere


def test_needle_is_measured_from_its_far_end_to_its_tip() -> None:
    track = Track(PERIOD)
    track('image', lambda segment: None, lambda: needle_at(50.0, 0.95))
    segments = []
    track('image', lambda segment: segments.append(segment), lambda: None)
    assert np.array_equal(segments, [[[50.0, 20.0], [50.0, 100.0]]])


def test_other_projection_or_size_is_another_geometry() -> None:
    frame = as_frame(np.zeros((40, 60), np.uint8))
    assert geometry(frame) == geometry(as_frame(np.ones((40, 60), np.uint8)))
    assert geometry(frame) != geometry(as_frame(np.zeros((60, 40), np.uint8)))
    assert geometry(frame) != geometry(as_frame(np.zeros((40, 60), np.uint16)))
