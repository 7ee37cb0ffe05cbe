"""A device's clock from when its messages arrive: simulated lines whose truth is known."""

import numpy as np
import pytest

from hybrid_guidance.imaging.device_clock import DOUBT_S, DeviceClock

TRUE = 1000.25
"""Seconds that our clock is ahead."""


def run(clock: DeviceClock, taken, late, ahead=TRUE) -> np.ndarray:
    """Return the error (s) of each mapped stamp; NaN where it was in doubt."""
    errors = []
    for at, delay in zip(taken, np.broadcast_to(late, np.shape(taken)), strict=True):
        stamp = clock.to_ours(at - ahead, round((at + delay) * 1e9))
        errors.append(np.nan if stamp is None else stamp * 1e-9 - at)
    return np.array(errors)


def test_jitter_of_the_line_is_taken_off() -> None:
    """Delays of 2 ms and more, exponential with 10 ms: the least of a window remains."""
    random = np.random.default_rng(4)
    taken = 5000.0 + np.arange(900) / 30.0
    late = 0.002 + random.exponential(0.010, 900)
    errors = run(DeviceClock(), taken, late)
    assert errors[100:].max() < 0.004
    assert errors.min() >= 0.002 - 1e-6
    assert late.std() > 5 * errors[100:].std()


def test_a_clock_that_drifts_is_followed() -> None:
    """100 ppm, ten times what a computer's clock does, for 10 minutes: 60 ms in all."""
    clock, errors = DeviceClock(), []
    for at in 5000.0 + np.arange(0.0, 600.0, 0.1):
        ahead = TRUE + 1e-4 * (at - 5000.0)
        errors.append(run(clock, [at], 0.003, ahead)[0])
    assert np.abs(np.array(errors) - 0.003).max() < 0.0012
    assert clock.jumps == 0


def test_messages_that_waited_in_a_line_keep_their_times() -> None:
    """The line stands still for 3 s; then all come at once: none is mapped as if it were new."""
    clock = DeviceClock()
    run(clock, 5000.0 + np.arange(100) / 30.0, 0.002)
    stalled = 5003.4 + np.arange(90) / 30.0
    errors = run(clock, stalled, 5006.4 - stalled)
    assert np.isnan(errors).sum() > 50
    assert np.nanmax(np.abs(errors)) < 0.003
    assert clock.jumps == 0
    assert np.allclose(run(clock, [5006.5], 0.002), 0.002, atol=1e-6)


@pytest.mark.parametrize('jump', [-3600.0, 2.0, 1e6])
def test_a_clock_that_was_set_is_believed_after_a_second(jump: float) -> None:
    clock = DeviceClock()
    run(clock, 5000.0 + np.arange(100) / 30.0, 0.002)
    errors = run(clock, 5003.4 + np.arange(60) / 30.0, 0.002, TRUE + jump)
    assert np.isnan(errors[:29]).all()
    assert np.allclose(errors[32:], 0.002, atol=1e-6)
    assert clock.jumps == 1


def test_a_single_nonsense_stamp_changes_nothing() -> None:
    clock = DeviceClock()
    taken = 5000.0 + np.arange(100) / 30.0
    run(clock, taken, 0.002)
    assert clock.to_ours(4e9, round(5003.4e9)) is None
    assert clock.to_ours(1.0, round(5003.4e9)) is None
    assert np.allclose(run(clock, taken + 4.0, 0.002), 0.002, atol=1e-6)


def test_our_own_clock_may_go_back() -> None:
    """A simulated time that starts over, by less and by more than is in doubt."""
    clock = DeviceClock()
    run(clock, 5000.0 + np.arange(60) / 30.0, 0.002)
    errors = run(clock, 4000.0 + np.arange(60) / 30.0, 0.002, TRUE - 1002.0)
    assert np.allclose(errors[-20:], 0.002, atol=1e-6)
    back = DOUBT_S / 2
    errors = run(clock, 4002.0 - back + np.arange(60) / 30.0, 0.002, TRUE - 1002.0 - back)
    assert np.allclose(errors, 0.002, atol=1e-6)
