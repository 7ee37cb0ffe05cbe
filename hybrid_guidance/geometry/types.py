"""Names for the arrays that every stage passes around."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
"""Any float64 array; the docstring gives its shape."""

Transform = NDArray[np.float64]
"""(4, 4) rigid transform ``a_T_b``: takes homogeneous points from frame b to frame a."""

Points = NDArray[np.float64]
"""(..., 3) metres."""

Pixels = NDArray[np.float64]
"""(..., 2) pixels (u to the right, v downwards; the centre of the first pixel is (0, 0))."""

Image = NDArray[Any]
"""(H, W) uint8, uint16 or float32 grey levels."""
