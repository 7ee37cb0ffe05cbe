"""Whether pictures change: a machine that has frozen goes on sending its last one as new.

Two pictures of a living sensor never agree in every pixel: there is noise in them. Equal ones are
the same picture, whatever their stamps say, and a needle in it is not where it was seen before
*now*. Some sources repeat a picture once or twice between new ones; only one that stays for long
is called frozen. A recording that is played again repeats pictures, too, but not one after another.
"""

import numpy as np

from hybrid_guidance.imaging.frame import Frame

_GRID = 16


class Repeats:
    """Compares each picture with the one before.

    Args:
        frozen_s: s for which a picture must stay the same to be called frozen.
        least: pictures that must be the same for that.
    """

    def __init__(self, frozen_s: float = 0.25, least: int = 3) -> None:
        self._frozen_ns, self._least = int(frozen_s * 1e9), least
        self._frame: Frame | None = None
        self._sample = b''
        self._since_ns = 0
        self._count = 0

    def __call__(self, frame: Frame) -> bool:
        """Take a frame; tell whether its pixels are those of the frame before."""
        pixels = frame.pixels
        # A few pixels tell pictures apart for nothing; all are compared only where these agree.
        sample = pixels[::_GRID, ::_GRID].tobytes()
        last, known = self._frame, self._sample
        self._frame, self._sample = frame, sample
        if last is not None and sample == known and last.pixels.shape == pixels.shape and (
                frame.stamp_ns != last.stamp_ns and np.array_equal(pixels, last.pixels)):
            self._count += 1
            return True
        self._since_ns, self._count = frame.stamp_ns, 1
        return False

    @property
    def words(self) -> str:
        """What is wrong, in words; '' while pictures change."""
        if self._frame is None or self._count < self._least:
            return ''
        stays = self._frame.stamp_ns - self._since_ns
        if stays < self._frozen_ns:
            return ''
        return (f'image does not change: the same picture for {stays * 1e-9:.1f} s under new '
                'stamps; unfreeze the machine, or see to its cable and grabber')
