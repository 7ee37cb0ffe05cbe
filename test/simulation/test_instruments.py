"""Needles against plain geometry."""

import numpy as np
import pytest

from hybrid_guidance.geometry.rigid import is_rigid
from hybrid_guidance.simulation.instruments import Needle, needle_on_path

ENTRY = np.array([0.057, 0.085, -0.026])
TARGET = np.array([0.020, 0.040, -0.019])


def test_full_depth_puts_the_tip_on_the_target_and_the_shaft_through_the_entry() -> None:
    depth = float(np.linalg.norm(TARGET - ENTRY))
    needle = needle_on_path(ENTRY, TARGET, depth, 0.0007, 0.09)
    assert is_rigid(needle.pose)
    np.testing.assert_allclose(needle.pose[:3, 3], TARGET, atol=1e-12)
    hub, tip = needle.shaft
    assert np.linalg.norm(tip - hub) == pytest.approx(0.09)
    beside = np.cross(ENTRY - tip, (hub - tip) / 0.09)
    assert np.linalg.norm(beside) < 1e-12


@pytest.mark.parametrize('depth', [-0.01, 0.0, 0.03])
def test_depth_is_measured_from_the_entry_along_the_path(depth: float) -> None:
    needle = needle_on_path(ENTRY, TARGET, depth, 0.0007, 0.09)
    direction = (TARGET - ENTRY) / np.linalg.norm(TARGET - ENTRY)
    assert (needle.pose[:3, 3] - ENTRY) @ direction == pytest.approx(depth)
    np.testing.assert_allclose(needle.pose[:3, 2], direction, atol=1e-12)


def test_moving_a_needle_keeps_everything_else() -> None:
    needle = Needle(np.eye(4), 0.0007, 0.09, bore=0.0004)
    pose = np.eye(4)
    pose[0, 3] = 0.01
    moved = needle.at(pose)
    assert (moved.diameter, moved.length, moved.bore) == (0.0007, 0.09, 0.0004)
    assert moved.pose[0, 3] == 0.01
    assert needle.pose[0, 3] == 0.0
