import cv2
import numpy as np
import pytest

from hybrid_guidance.calibration.gates import GateError
from hybrid_guidance.calibration.temporal import calibrate_delay, floor_depth
from hybrid_guidance.calibration.track import Track
from hybrid_guidance.simulation.calibrations import Errors, bobbing


@pytest.mark.parametrize('delay', [-0.18, 0.0, 0.0648])
def test_delay_is_found_between_samples(delay: float) -> None:
    for seed in range(3):
        stamps, floor, times, poses = bobbing(np.random.default_rng(seed), delay, 15.0, Errors())
        found = calibrate_delay(stamps, floor, Track(times, poses))
        assert abs(found.delay - delay) < 2e-3
        assert found.inliers < found.samples


def test_jittering_stamps_are_smoothed_where_frames_are_counted() -> None:
    """Independent: the truth is known, and both ways are tried on the same recording."""
    errors = []
    for seed in range(5):
        stamps, floor, times, poses = bobbing(np.random.default_rng(seed), 0.1, 15.0, Errors(),
                                              jitter=0.012)
        track = Track(times, poses)
        counted = calibrate_delay(stamps, floor, track, numbers=np.arange(len(stamps)))
        plain = calibrate_delay(stamps, floor, track)
        assert counted.regular
        assert counted.held_out < plain.held_out
        errors.append(abs(counted.delay - 0.1))
    assert max(errors) < 3e-3


def test_motion_of_something_else_is_no_delay() -> None:
    stamps, floor, times, _ = bobbing(np.random.default_rng(1), 0.0, 15.0, Errors())
    other = bobbing(np.random.default_rng(2), 0.0, 15.0, Errors())[3]
    with pytest.raises(GateError, match=r'does not explain the image|agree, at least|no delay'):
        calibrate_delay(stamps, floor, Track(times, other))


def test_a_probe_that_does_not_move_tells_no_delay() -> None:
    stamps, floor, times, poses = bobbing(np.random.default_rng(1), 0.0, 15.0, Errors())
    poses[:, :3, 3] = 0.05 + 0.02 * (poses[:, :3, 3] - 0.05)
    with pytest.raises(GateError, match='missing is up and down'):
        calibrate_delay(stamps, floor, Track(times, poses))


def test_slow_motion_tells_no_delay() -> None:
    stamps, floor, times, poses = bobbing(np.random.default_rng(1), 0.0, 15.0, Errors(
        0.0, 0.0, 0.0, 0.0, 0.0))
    with pytest.raises(GateError, match='too slowly'):
        calibrate_delay(stamps * 20.0, floor, Track(times * 20.0, poses))


def test_two_images_never_pass() -> None:
    stamps, floor, times, poses = bobbing(np.random.default_rng(1), 0.0, 15.0, Errors())
    with pytest.raises(GateError, match='60 are needed'):
        calibrate_delay(stamps[200:202], floor[200:202], Track(times, poses))


def test_floor_is_a_line_through_speckle_gaps_and_a_bright_spot() -> None:
    random = np.random.default_rng(4)
    for tilt in (-0.2, 0.0, 0.15):
        image = 3.0 * random.rayleigh(1.0, (616, 820))
        rows = np.arange(616)[:, None]
        line = 250.0 + tilt * (np.arange(820) - 410.0)
        image += 180.0 * np.exp(-((rows - line) / 3.0)**2)
        image[:, 300:380] = 3.0
        cv2.circle(image, (600, 120), 12, 255.0, -1)
        assert abs(floor_depth(np.clip(image, 0, 255).astype(np.uint8)) - 250.0) < 0.5


def test_water_without_a_floor_has_no_depth() -> None:
    image = np.random.default_rng(5).integers(0, 8, (616, 820)).astype(np.uint8)
    assert np.isnan(floor_depth(image))
