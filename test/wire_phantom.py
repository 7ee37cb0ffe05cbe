"""A phantom of three N-wires, for tests."""

import numpy as np

from hybrid_guidance.calibration.wires import WirePhantom

ROWS = (((30, 55, 60), (30, 35, 60), 20), ((30, 35, 60), (30, 55, 60), 10),
        ((35, 55, 60), (35, 40, 60), 0))


def phantom() -> WirePhantom:
    wires = np.array([[[[front, 0, z], [back, 40, z]]
                       for front, back in zip(fronts, backs, strict=True)]
                      for fronts, backs, z in ROWS]) * 1e-3
    return WirePhantom(wires, (('a', 'b', 'c'),) * 3)
