"""Frames are let through at a rate, and never stopped for good."""

from hybrid_guidance.ros.pace import Pace

RATE = 10.0


def passed(stamps_ms: list[float]) -> list[float]:
    pace = Pace()
    return [stamp for stamp in stamps_ms if pace.is_due(round(stamp * 1e6), RATE)]


def test_frames_pass_at_no_more_than_the_rate() -> None:
    assert len(passed([step * 33.3 for step in range(31)])) == 11


def test_a_frame_a_little_early_passes() -> None:
    assert passed([0.0, 99.0, 201.0]) == [0.0, 99.0, 201.0]


def test_a_clock_that_jumps_back_does_not_stop_frames() -> None:
    assert passed([60_000.0, 0.0, 30.0, 100.0]) == [60_000.0, 0.0, 100.0]
