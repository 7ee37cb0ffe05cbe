"""The simulated room: trackers that are wrong in known ways, patients that move."""

import numpy as np
import pytest

from hybrid_guidance.simulation.motion import BREATHING, make_motion
from hybrid_guidance.simulation.room import Tracker

NOISE = (0.1e-3, 0.001)


def readings(tracker: Tracker, count: int = 4000) -> list[np.ndarray | None]:
    """Return what is read of a body at the origin, (4, 4) each or None."""
    read = [tracker.read(np.eye(4), number) for number in range(count)]
    return [None if reading is None else reading.pose for reading in read]


def test_bias_moves_every_reading_and_leaves_the_noise_as_it_was() -> None:
    clean, biased = readings(Tracker(*NOISE, 0.02, 3)), readings(Tracker(*NOISE, 0.02, 3, 0.004))
    offsets = np.array([other[:3, 3] - one[:3, 3]
                        for one, other in zip(clean, biased, strict=True)])
    np.testing.assert_allclose(np.linalg.norm(offsets, axis=1), 0.004)
    np.testing.assert_allclose(offsets, offsets[:1].repeat(len(offsets), axis=0), atol=1e-12)


@pytest.mark.parametrize('share', [0.0, 0.1, 0.5])
def test_dropout_takes_its_share_of_readings_in_gaps(share: float) -> None:
    blind = np.array([pose is None for pose in readings(Tracker(*NOISE, 0.02, 5, 0.0, share),
                                                        40000)])
    assert np.mean(blind) == pytest.approx(share, abs=0.15 * share)
    gaps = np.sum(np.diff(blind.astype(int)) == 1)
    if share > 0.0:
        assert np.sum(blind) / gaps == pytest.approx(10.0, rel=0.1)


def test_a_reading_is_told_late_and_says_when_it_was_taken() -> None:
    reading = Tracker(0.0, 0.0, 0.15, 1).read(np.eye(4), 7)
    assert reading is not None
    assert (reading.stamp_ns, reading.due_ns) == (7, 150_000_007)


def test_a_patient_lies_still_by_default() -> None:
    motion = make_motion('lumbar', 2)
    assert all(np.array_equal(motion.at(seconds), np.eye(4)) for seconds in (0.0, 1.3, 500.0))


@pytest.mark.parametrize('region', sorted(BREATHING))
def test_breath_repeats_and_spans_the_amplitude_of_its_region(region: str) -> None:
    motion = make_motion(region, 4, breathing=1.0)
    times = np.linspace(0.0, 4.0, 401)
    path = np.array([motion.at(seconds)[:3, 3] for seconds in times])
    np.testing.assert_allclose(path[0], path[-1], atol=1e-9)
    np.testing.assert_allclose(np.ptp(path, axis=0), np.abs(BREATHING[region]), rtol=1e-3)
    along = path @ BREATHING[region] / np.linalg.norm(BREATHING[region])
    assert along.min() == pytest.approx(0.0, abs=1e-6)
    # Nearer to the end of expiration for most of the time: the mean of cos⁴ is 3/8.
    assert along[:-1].mean() == pytest.approx(0.375 * along.max(), rel=1e-3)


def test_another_seed_breathes_at_another_time() -> None:
    first, other = (make_motion('lumbar', seed, breathing=1.0).at(0.0)[1, 3]
                    for seed in (1, 2))
    assert abs(first - other) > 1e-5


def test_a_shift_comes_once_at_its_time_and_stays() -> None:
    motion = make_motion('hip', 6, shift=0.008, shift_time=10.0)
    assert np.array_equal(motion.at(9.99), np.eye(4))
    for seconds in (10.0, 300.0):
        assert np.linalg.norm(motion.at(seconds)[:3, 3]) == pytest.approx(0.008)
