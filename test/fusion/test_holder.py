"""What becomes of what was asked: in its order, at a hand's pace, and not for ever."""

import numpy as np
import pytest

from hybrid_guidance.fusion.holder import Asked, Going, Holder, Motion

TIP, DIRECTION = np.array([0.0, 0.0, 0.05]), np.array([0.0, 0.0, 1.0])
MOTION = Motion(obey=0.006, turn=0.1, linger=0.6)


def asked(seconds: float, way: tuple[float, float, float],
          turn: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> Asked:
    """Return a wish of a needle that was shown at ``TIP``."""
    stamp = round(seconds * 1e9)
    return Asked(stamp, stamp, TIP, DIRECTION, np.array(way), np.array(turn))


def going(holder: Holder, begin: float, end: float) -> Going:
    return holder.going(TIP, DIRECTION, round(begin * 1e9), round(end * 1e9),
                        lambda item: (item.tip, item.direction))


@pytest.fixture
def holder() -> Holder:
    return Holder(MOTION)


def test_nothing_goes_anywhere_unasked(holder: Holder) -> None:
    holder.ask(asked(2.0, (0.001, 0.0, 0.0)))
    found = going(holder, 1.0, 2.0)
    assert not found.led
    assert not found.shift.any()


def test_a_hand_goes_at_its_pace_and_stops_where_it_was_asked_to(holder: Holder) -> None:
    """3 mm at 6 mm/s take half a second; the turn is done in the same time."""
    holder.ask(asked(1.0, (0.003, 0.0, 0.0), (0.0, 0.02, 0.0)))
    half, whole = going(holder, 1.0, 1.25), going(holder, 1.0, 1.6)
    assert half.shift == pytest.approx([0.0015, 0.0, 0.0])
    assert half.turn == pytest.approx([0.0, 0.01, 0.0], rel=1e-3)
    assert whole.shift == pytest.approx([0.003, 0.0, 0.0])
    assert whole.shift_spread[0, 0] == pytest.approx((MOTION.inexact * 0.003)**2)


def test_a_later_wish_replaces_an_earlier_one(holder: Holder) -> None:
    """0.2 s towards x, and back from there to 0.1 mm of y."""
    holder.ask(asked(1.0, (0.003, 0.0, 0.0)))
    holder.ask(asked(1.2, (0.0, 0.0001, 0.0)))
    assert going(holder, 1.0, 1.2).shift == pytest.approx([0.0012, 0.0, 0.0])
    assert going(holder, 1.0, 1.8).shift == pytest.approx([0.0, 0.0001, 0.0], abs=1e-9)


def test_what_is_heard_no_more_is_done_no_further(holder: Holder) -> None:
    holder.ask(asked(1.0, (0.06, 0.0, 0.0)))
    assert going(holder, 1.0, 9.0).shift[0] == pytest.approx(0.006 * MOTION.linger)
    assert not going(holder, 1.7, 1.8).led


def test_a_clock_that_jumps_back_is_followed(holder: Holder) -> None:
    holder.ask(asked(100.0, (0.003, 0.0, 0.0)))
    holder.ask(asked(1.0, (0.0, 0.003, 0.0)))
    assert going(holder, 1.0, 1.25).shift == pytest.approx([0.0, 0.0015, 0.0])
