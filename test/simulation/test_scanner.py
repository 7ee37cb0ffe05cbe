"""The CT of a digital patient: what it reads in known tissues, and that its axes are right."""

import numpy as np

from hybrid_guidance.simulation.anatomy import Grid, empty_patient
from hybrid_guidance.simulation.scanner import scanned
from hybrid_guidance.simulation.tissues import Tissue


def test_a_scan_reads_air_muscle_and_bone_where_they_are() -> None:
    grid = Grid(np.array([-0.02, -0.03, 0.01]), 0.0007, (60, 70, 80))
    labels = np.full(grid.shape, Tissue.MUSCLE, np.uint8)
    labels[:, :20] = Tissue.AIR
    mineral = np.zeros(grid.shape, np.uint8)
    mineral[30:50, 40:60, 10:30] = 255
    labels[30:50, 40:60, 10:30] = Tissue.CORTICAL
    made = scanned(empty_patient(grid, labels=labels, mineral=mineral), 3, crop=0.0, noise=5.0)
    z, y, x = (start + step * np.arange(count) for start, step, count in zip(
        made.origin[::-1], made.spacing[::-1], made.volume.shape, strict=True))
    bone = made.volume > 700
    # Partial voxels count in part: the centre of mass is known to a fraction of one.
    weight = np.where(made.volume > 100, made.volume - 40.0, 0.0)
    centre = grid.origin + grid.spacing * np.array([19.5, 49.5, 39.5])
    found = [np.average(axis, weights=weight.sum(axis=others)) for axis, others in (
        (x, (0, 1)), (y, (0, 2)), (z, (1, 2)))]
    assert np.abs(np.array(found) - centre).max() < 0.00015
    assert np.median(made.volume[:, y < grid.origin[1] + 17 * grid.spacing]) == -1000
    assert 30 < np.median(made.volume[:, y > grid.origin[1] + 63 * grid.spacing]) < 50
    assert 1400 < np.median(made.volume[bone]) < 1600
