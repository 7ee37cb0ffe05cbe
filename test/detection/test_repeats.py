from dataclasses import replace

import numpy as np

from hybrid_guidance.detection.repeats import Repeats
from hybrid_guidance.geometry.projection import Projection
from hybrid_guidance.imaging.frame import Frame

SIZE = (64, 48)
PERIOD = 33_333_333


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, SIZE[::-1], dtype=np.uint8)


def play(repeats: Repeats, pictures: list[np.ndarray], first: int = 0) -> list[tuple[bool, bool]]:
    """Return (repeated, frozen) of each picture, sent at 30 Hz."""
    return [(repeats(Frame(pixels.copy(), (first + number) * PERIOD,
                           Projection.uncalibrated(SIZE))), bool(repeats.words))
            for number, pixels in enumerate(pictures)]


def test_a_frozen_picture_is_named_after_a_quarter_second_and_a_needle_in_it_never_counts() -> None:
    found = play(Repeats(), [picture(0), picture(1), *[picture(2)] * 12])
    assert [repeated for repeated, _ in found] == [False] * 3 + [True] * 11
    first = next(number for number, (_, frozen) in enumerate(found) if frozen)
    assert 0.25 <= (first - 2) / 30.0 < 0.31


def test_pictures_that_change_again_are_not_frozen() -> None:
    repeats = Repeats()
    play(repeats, [picture(1)] * 15)
    assert 'does not change' in repeats.words
    assert play(repeats, [picture(2), picture(3)], 15) == [(False, False)] * 2


def test_one_pixel_that_changes_is_a_picture_that_changes() -> None:
    """Also one that the first look at a few pixels does not see."""
    still = picture(4)
    changed = still.copy()
    changed[17, 23] ^= 1
    assert play(Repeats(), [still, changed] * 10) == [(False, False)] * 20


def test_a_file_without_noise_that_is_played_twice_is_not_frozen() -> None:
    series = [picture(seed) for seed in range(8)]
    assert play(Repeats(), series * 2) == [(False, False)] * 16


def test_a_source_that_sends_each_picture_twice_repeats_but_is_not_frozen() -> None:
    found = play(Repeats(), [picture(seed // 2) for seed in range(20)])
    assert found == [(False, False), (True, False)] * 10


def test_a_copied_message_is_no_repeated_picture() -> None:
    """Same stamp: the same moment, told twice."""
    repeats = Repeats()
    frame = Frame(picture(1), PERIOD, Projection.uncalibrated(SIZE))
    assert not repeats(frame)
    assert not repeats(replace(frame))
