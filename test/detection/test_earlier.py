"""What stood in earlier X-rays against what has come, in images whose lines are known."""

from functools import cache

import numpy as np
import pytest

from hybrid_guidance.detection.xray import XrayNeedleDetector
from hybrid_guidance.geometry.projection import Projection
from hybrid_guidance.imaging.frame import Frame

from .conftest import line_profile, shaft_coordinates

SHAPE = (640, 640)
TIP, ANGLE = np.array([230.0, 240.0]), 0.9
WAY = np.array([np.cos(ANGLE), np.sin(ANGLE)])


@cache
def tissue(moved: tuple[float, float], body: int) -> np.ndarray:
    """Bones with edges, some px from where they are at rest."""
    random = np.random.default_rng(body)
    v, u = np.mgrid[:SHAPE[0], :SHAPE[1]].astype(np.float32)
    result = np.zeros(SHAPE, np.float32)
    for _ in range(14):
        centre, radius = random.uniform(0, 640, 2), random.uniform(30, 120)
        off = np.hypot(u - centre[0] - moved[0], v - centre[1] - moved[1]) - radius
        result += random.uniform(0.05, 0.2) / (1.0 + np.exp(off / 3.0))
    return result


def line(tip, angle: float, length: float, contrast: float, sigma: float, moved) -> np.ndarray:
    """A straight line that ends at a tip."""
    s, x = shaft_coordinates(SHAPE, np.asarray(tip) + moved, angle)
    return contrast * line_profile(s, x, length, sigma, 1.0)


def wire(moved=(0.0, 0.0)) -> np.ndarray:
    """Steel across the whole lower half, as thick as a needle: nothing tells it from one."""
    return line([500.0, 420.0], -0.2, 700.0, 0.5, 1.4, moved)


def needle(depth: float, moved=(0.0, 0.0)) -> np.ndarray:
    """Comes in from the border of the image, some px past a place."""
    return line(TIP + depth * WAY, ANGLE, 700.0, 0.35, 1.3, moved)


def rib(contrast: float, moved=(0.0, 0.0), length: float = 160.0) -> np.ndarray:
    """As straight and thin as a needle; at a contrast of 0.33 not dark enough, at 0.38 so."""
    return line([400.0, 200.0], 0.3, length, contrast, 3.0, moved)


def picture(number: int, *lines: np.ndarray, moved=(0.0, 0.0), photons: float = 900.0,
            body: int = 11) -> Frame:
    """The X-ray of a second, with the noise of its own."""
    counts = np.random.default_rng(number).poisson(
        photons * np.exp(-tissue(moved, body) - sum(lines, np.zeros(SHAPE, np.float32))))
    return Frame((12.0 * counts).astype(np.uint16), number * 10**9 + 1,
                 Projection.uncalibrated(SHAPE[::-1]))


def passes(found) -> bool:
    return found is not None and found.probability >= 0.5


def is_the_needle(found, depth: float, moved=(0.0, 0.0)) -> bool:
    return passes(found) and float(np.linalg.norm(found.tip - TIP - depth * WAY - moved)) < 3.0


def after(*earlier: Frame) -> XrayNeedleDetector:
    """Return a detector that has seen some pictures."""
    detector = XrayNeedleDetector()
    for frame in earlier:
        detector(frame)
    return detector


@pytest.mark.parametrize('moved', [(0.0, 0.0), (11.0, -7.0)])
def test_a_line_that_stood_there_before_is_no_needle_for_one_dark_picture(moved) -> None:
    """Where a breath moved it, too; by that picture alone it is one."""
    now = picture(3, rib(0.38, moved), moved=moved)
    assert passes(XrayNeedleDetector()(now))
    assert not passes(after(*(picture(k, rib(0.33)) for k in range(3)))(now))
    # Where nothing stood, or only a part of it, it is new.
    assert passes(after(*(picture(k) for k in range(3)))(now))
    assert passes(after(*(picture(k, rib(0.33, length=125.0)) for k in range(3)))(now))


def test_the_needle_beside_a_wire_is_the_one_that_has_come() -> None:
    """The wire is darker, longer and as straight: without earlier pictures it is taken."""
    detector, right, alone = after(picture(0, wire()), picture(1, wire())), [], []
    for number, depth in enumerate((0.0, 15.0, 30.0, 45.0, 60.0), 2):
        moved = (3.0 * (number % 3), -2.0 * (number % 3))
        frame = picture(number, wire(moved), needle(depth, moved), moved=moved)
        right.append(is_the_needle(detector(frame), depth, moved))
        alone.append(is_the_needle(XrayNeedleDetector()(frame), depth, moved))
    assert all(right)
    assert sum(alone) <= 3


def test_a_needle_that_was_there_first_is_new_where_it_has_gone_deeper() -> None:
    at = (90.0, 60.0)
    first, now = (picture(k, wire(at), needle(depth, at), moved=at)
                  for k, depth in enumerate((66.0, 100.0)))
    assert is_the_needle(after(first)(now), 100.0, at)
    assert not is_the_needle(XrayNeedleDetector()(now), 100.0, at)


def test_where_the_table_stops_the_wire_is_known_anew() -> None:
    """Other bones come into view, and another piece of the wire."""
    moved = (-100.0, 40.0)
    frame = picture(2, wire(moved), needle(60.0), body=12)
    assert is_the_needle(after(picture(0, wire()), picture(1, wire(moved), body=12))(frame), 60.0)
    assert not is_the_needle(XrayNeedleDetector()(frame), 60.0)


def test_a_needle_that_was_there_first_and_stands_still_stays_reported() -> None:
    detector = XrayNeedleDetector()
    for number in range(8):
        assert is_the_needle(detector(picture(number, needle(40.0))), 40.0)


def test_a_needle_that_was_doubtful_at_first_is_reported_once_most_pictures_show_it() -> None:
    detector = after(*(picture(k, rib(0.33)) for k in range(3)))
    assert [passes(detector(picture(k, rib(0.48)))) for k in range(3, 7)] == [
        False, True, True, True]


@pytest.mark.parametrize('moved', [(90.0, 60.0), (-150.0, 20.0)])
def test_after_the_table_moved_a_needle_is_judged_by_its_own_picture(moved) -> None:
    detector = after(*(picture(k, needle(40.0), wire()) for k in range(3)))
    for number in range(3, 6):
        frame = picture(number, needle(40.0, moved), moved=moved)
        found, alone = detector(frame), XrayNeedleDetector()(frame)
        assert is_the_needle(found, 40.0, moved)
        assert found.probability == pytest.approx(alone.probability, abs=1e-12)


def test_another_projection_begins_anew() -> None:
    """The same pixels of another geometry are another place."""
    earlier = [picture(k, rib(0.33)) for k in range(3)]
    now = picture(3, rib(0.38))
    tilted = Frame(now.pixels, now.stamp_ns, Projection(np.array([
        [900.0, 0.0, 320.0, 0.0], [0.0, 900.0, 320.0, 0.0], [0.0, 0.0, 1.0, 0.0]]), 640, 640))
    assert passes(after(*earlier)(tilted))


def test_a_wire_that_the_table_carried_along_has_not_come() -> None:
    """It lies elsewhere in depth than the bones and the needle, which is in from the first."""
    moved, elsewhere = (-70.0, -30.0), (-40.0, -100.0)
    frame = picture(1, wire(elsewhere), needle(100.0, moved), moved=moved)
    assert is_the_needle(XrayNeedleDetector()(frame), 100.0, moved)
    assert is_the_needle(after(picture(0, wire(), needle(100.0)))(frame), 100.0, moved)
