"""The sweep and the tremor of a simulated probe: how far, how fast, and still without them."""

import numpy as np

from hybrid_guidance.geometry.rigid import is_rigid
from hybrid_guidance.simulation.motion import probe_sweep, probe_tremor


def test_without_a_reach_the_probe_is_held_still() -> None:
    assert all(np.array_equal(probe_sweep(time, 0.0), np.eye(4)) for time in (0.0, 1.7, 60.0))


def test_slice_goes_to_and_fro_over_its_reach_at_its_speed() -> None:
    times = np.arange(0.0, 60.0, 0.02)
    poses = np.array([probe_sweep(float(time), 0.03, 0.01) for time in times])
    across = poses[:, 2, 3]
    assert np.isclose(across.max(), 0.03, atol=3e-4)
    assert np.isclose(across.min(), -0.03, atol=3e-4)
    assert np.isclose(np.median(np.abs(np.diff(across))) / 0.02, 0.01, rtol=0.01)
    assert poses[0, :3, 3].tolist() == [0.0, 0.0, 0.0]
    # Sideways over a spine and back, and never away from the skin.
    assert -0.04 < poses[:, 0, 3].min() < -0.03
    assert poses[:, 0, 3].max() <= 0.0
    assert not poses[:, 1, 3].any()
    assert all(is_rigid(pose) for pose in poses[::50])


def test_trembling_hand_holds_the_slice_within_its_deviation_again_and_again() -> None:
    times = np.arange(0.0, 200.0, 0.03)
    poses = np.array([probe_tremor(float(time), 2e-4, 8) for time in times])
    np.testing.assert_allclose(poses[:, :3, 3].std(axis=0), 2e-4, rtol=0.1)
    turns = poses[:, [2, 0, 1], [1, 2, 0]]
    np.testing.assert_allclose(turns.std(axis=0), 2e-4 / 0.05, rtol=0.1)
    assert all(is_rigid(pose) for pose in poses[::100])
    assert np.array_equal(poses[7], probe_tremor(float(times[7]), 2e-4, 8))
    assert not np.allclose(poses[7], probe_tremor(float(times[7]), 2e-4, 9), atol=1e-6)
    assert np.array_equal(probe_tremor(3.0, 0.0), np.eye(4))
