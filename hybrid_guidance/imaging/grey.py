"""X-ray counts as grey levels for the eye."""

import cv2
import numpy as np

from hybrid_guidance.geometry.types import Image

_AIR = 0.5
"""Attenuation (natural logarithm) below which a ray met no patient to speak of."""


def counts_to_grey(counts: Image) -> Image:
    """Return (H, W) detector counts as uint8: logarithmic, bright where little was passed.

    Counts fall exponentially with what they passed; the eye wants what was passed. The window
    is that of the rays that met something; all others are white.
    """
    level = cv2.log(np.maximum(counts, 1).astype(np.float32))
    # A sixteenth of the pixels tells the window as well as all of them.
    some = level[::4, ::4]
    some = some[some <= max(float(some.max()) - _AIR, float(np.median(some)))]
    low, high = np.percentile(some, (0.5, 99.0))
    scale = 255.0 / max(float(high - low), 1e-3)
    grey = np.clip((level - np.float32(low)) * np.float32(scale), 0, 255)
    return np.asarray(grey, np.uint8)
