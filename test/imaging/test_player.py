from dataclasses import dataclass, field

import numpy as np
import pytest

from hybrid_guidance.geometry.projection import Projection
from hybrid_guidance.imaging.frame import RecordedFrame
from hybrid_guidance.imaging.player import Player


@dataclass
class Film:
    """A recording that does not know its times in advance."""

    at: tuple[float, ...]
    period: float
    notes: tuple[str, ...] = ()
    projection: Projection = field(default_factory=lambda: Projection.uncalibrated((1, 1)))

    def __len__(self) -> int:
        return len(self.at)

    def __getitem__(self, index: int) -> RecordedFrame:
        return RecordedFrame(np.zeros((1, 1), np.uint8), self.at[index])


FILM = Film((0.0, 0.1, 0.4), 0.5)


def shown(player: Player, clock: np.ndarray) -> list[int]:
    return [count for elapsed in clock for count in player.due(float(elapsed))]


def test_every_frame_of_every_turn_is_due_once_and_in_order() -> None:
    player = Player(FILM, start=2.0)
    counts = shown(player, np.arange(0.0, 7.0, 0.0101))
    assert counts == list(range(len(counts)))
    assert len(counts) == 3 * 10
    assert [player.locate(count) for count in counts[:4]] == [(0, 0), (0, 1), (0, 2), (1, 0)]


def test_a_frame_is_due_exactly_at_the_time_that_was_announced() -> None:
    player = Player(Film(tuple(np.arange(30) / 30.0), 1.0), start=0.1)
    for expected in range(200):
        time = player.next_time
        assert time is not None
        assert time == pytest.approx(0.1 + expected / 30.0)
        assert player.due(np.nextafter(time, -1.0)) == range(expected, expected)
        assert player.due(time) == range(expected, expected + 1)


def test_a_long_sleep_reports_what_it_slept_through() -> None:
    player = Player(FILM)
    assert player.due(0.0) == range(1)
    assert player.due(1e9) == range(1, 3 * 2_000_000_000 + 1)


def test_nothing_follows_the_last_frame_without_a_loop() -> None:
    player = Player(FILM, loop=False)
    assert player.due(100.0) == range(3)
    assert player.next_time is None
    assert player.due(200.0) == range(3, 3)


def test_playing_goes_on_when_the_clock_jumps_back() -> None:
    player = Player(FILM)
    assert player.due(0.25) == range(2)
    assert player.due(-5.0) == range(2, 2)
    assert player.jumps == 1
    assert player.next_time == pytest.approx(-5.0 + 0.15)
    assert player.due(-4.8) == range(2, 3)


def test_a_recording_out_of_order_or_with_too_short_a_loop_is_refused() -> None:
    with pytest.raises(ValueError, match='in order'):
        Player(Film((0.0, 0.2, 0.1), 1.0))
    with pytest.raises(ValueError, match='ends before its last frame'):
        Player(Film((0.0, 1.0), 1.0))
