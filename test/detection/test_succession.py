"""A needle that images in a row agree on is reported, what flickers is not."""

import numpy as np
import pytest

from hybrid_guidance.detection.needle import PixelNeedle
from hybrid_guidance.detection.succession import Succession

PERIOD = 33_000_000


def needle(along: float = 0.0, across: float = 0.0, degrees: float = 30.0,
           length: float = 80.0) -> PixelNeedle:
    """Return a needle of px along and across a line through (200, 150)."""
    angle, way = np.deg2rad(degrees), np.deg2rad(30.0)
    axes = np.array([[np.cos(way), np.sin(way)], [-np.sin(way), np.cos(way)]])
    return PixelNeedle(np.array([200.0, 150.0]) + np.array([along, across]) @ axes,
                       np.array([np.cos(angle), np.sin(angle)]), length,
                       np.diag([1.0, 0.5, 1e-4]), 0.95)


def reported(needles, period: int = PERIOD, **given) -> list[bool]:
    """Return which of a series of images are reported."""
    succession = Succession(**given)
    return [succession(one, number * period) for number, one in enumerate(needles)]


def test_needle_is_reported_from_the_third_image_in_a_row_and_then_in_each() -> None:
    assert reported([needle(0.8 * step, 0.5 * (-1)**step) for step in range(6)]) == (
        [False] * 2 + [True] * 4)


def test_one_image_is_enough_where_none_has_to_agree() -> None:
    assert reported([None, needle()], confirm=1) == [False, True]


def test_line_that_flickers_is_not_reported() -> None:
    assert not any(reported([needle(), needle(), None] * 10))


@pytest.mark.parametrize('other', [
    needle(across=25.0), needle(degrees=42.0), needle(along=60.0), needle(degrees=-150.0)])
def test_lines_that_do_not_agree_are_not_one_needle(other: PixelNeedle) -> None:
    assert not any(reported([needle(), other] * 10))


def test_end_that_strays_along_the_shaft_is_still_the_same_needle() -> None:
    assert reported([needle(), needle(20.0, length=100.0), needle(-15.0, length=65.0)])[-1]


def test_needle_that_was_reported_is_reported_at_once_after_others_and_a_pause() -> None:
    seen = [needle()] * 3 + [needle(across=90.0), *[None] * 15, needle(2.0)]
    assert reported(seen)[2:] == [True, *[False] * 16, True]


def test_needle_unseen_for_long_has_to_be_agreed_on_again() -> None:
    seen = [needle()] * 3 + [None] * 40 + [needle()] * 3
    assert reported(seen)[-3:] == [False, False, True]


def test_slow_images_may_show_more_motion_than_fast_ones() -> None:
    drifting = [needle(across=12.0 * step) for step in range(4)]
    assert not any(reported(drifting, period=10_000_000))
    assert reported(drifting, period=100_000_000)[-1]
