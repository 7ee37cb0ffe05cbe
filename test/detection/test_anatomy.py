"""X-rays of bone-like structure that moves by a known amount, with photon noise and a needle."""

import cv2
import numpy as np
import pytest

from hybrid_guidance.detection.anatomy import AnatomyShift
from hybrid_guidance.detection.needle import PixelNeedle
from hybrid_guidance.geometry.projection import Projection
from hybrid_guidance.imaging.frame import Frame

SIZE = 512
PROJECTION = Projection.perspective((1700.0, 1700.0), (255.5, 255.5), (SIZE, SIZE))


class Fluoroscope:
    """Images of counts, (512, 512) uint16, of one anatomy."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        rough = self.random.standard_normal((2 * SIZE, 2 * SIZE)).astype(np.float32)
        self.attenuation = sum(cv2.GaussianBlur(rough, (0, 0), sigma) * sigma for sigma in (6, 14))
        self.number = 0

    def image(self, shift: tuple[float, float] = (0.0, 0.0), tip: tuple[float, float] | None = None
              ) -> tuple[Frame, PixelNeedle | None]:
        move = np.float32([[1, 0, shift[0] - SIZE // 2], [0, 1, shift[1] - SIZE // 2]])
        body = cv2.warpAffine(self.attenuation, move, (SIZE, SIZE), flags=cv2.INTER_CUBIC)
        needle = None
        if tip is not None:
            canvas = np.zeros((SIZE, SIZE), np.float32)
            way = np.array([0.8, 0.6])
            ends = [tuple(int(value) for value in end) for end in (tip, tip - 250.0 * way)]
            cv2.line(canvas, *ends, 1.0, 3, cv2.LINE_AA)
            body = body + 1.5 * canvas
            needle = PixelNeedle(np.array(tip), way, 250.0, np.eye(3), 1.0)
        counts = self.random.poisson(3000.0 * np.exp(-0.4 * body))
        self.number += 1
        return Frame(np.clip(counts, 0, 65535).astype(np.uint16), self.number, PROJECTION), needle


@pytest.mark.parametrize('true', [(0.0, 0.0), (0.7, -0.4), (5.3, 2.2), (-9.1, 11.6)])
def test_the_shift_of_anatomy_is_measured_within_its_deviation(true) -> None:
    scope, compare = Fluoroscope(1), AnatomyShift()
    assert compare(*scope.image()) is None
    shift = compare(*scope.image(true))
    error = np.abs(shift.pixels - true).max()
    assert error < 0.2 + 0.15 * np.linalg.norm(true)
    assert error < 4.0 * shift.deviation
    assert shift.deviation < 2.0


def test_a_needle_that_goes_in_is_no_moving_anatomy() -> None:
    scope, compare = Fluoroscope(2), AnatomyShift()
    compare(*scope.image(tip=(250.0, 260.0)))
    shift = compare(*scope.image(tip=(290.0, 290.0)))
    assert np.abs(shift.pixels).max() < 0.2


def test_anatomy_at_rest_is_not_said_to_move_in_many_images() -> None:
    scope, compare = Fluoroscope(101), AnatomyShift()
    compare(*scope.image())
    found = [compare(*scope.image()) for _ in range(40)]
    assert max(np.linalg.norm(shift.pixels) for shift in found) < 0.25


def test_images_without_structure_or_of_another_geometry_are_not_compared() -> None:
    scope, compare = Fluoroscope(3), AnatomyShift()
    flat = scope.random.poisson(3000.0, (SIZE, SIZE)).astype(np.uint16)
    compare(Frame(flat, 1, PROJECTION), None)
    noise = scope.random.poisson(3000.0, (SIZE, SIZE)).astype(np.uint16)
    assert compare(Frame(noise, 2, PROJECTION), None) is None
    compare(*scope.image())
    other = Projection.perspective((1800.0, 1800.0), (255.5, 255.5), (SIZE, SIZE))
    assert compare(Frame(scope.image()[0].pixels, 3, other), None) is None
