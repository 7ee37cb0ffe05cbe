import numpy as np
import pytest

from hybrid_guidance.fusion.streams import Stream

PERIOD = 1.0 / 30.0


def ns(time: float) -> int:
    return int(time * 1e9) + 10**15


class Link:
    """Sends stamps through a connection to a stream."""

    def __init__(self, seed: int = 0, period: float = PERIOD) -> None:
        self.stream, self.period = Stream('ultrasound'), period
        self.random = np.random.default_rng(seed)
        self.time = 0.0

    def send(self, count: int, delay: float = 0.05, off: float = 0.0) -> None:
        for _ in range(count):
            self.time += self.period
            late = delay + abs(self.random.normal(0.0, 0.01))
            self.stream.arrived(ns(self.time + off), ns(self.time + late))

    def kinds(self) -> list[str]:
        return [fault.kind for fault in self.stream.faults(ns(self.time + 0.05))]

    def words(self) -> str:
        return '; '.join(fault.words for fault in self.stream.faults(ns(self.time + 0.05)))


def test_a_copy_is_told_apart_and_named_for_a_while() -> None:
    link = Link()
    link.send(10)
    assert not link.stream.arrived(ns(5 * PERIOD), ns(link.time))
    assert link.kinds() == ['duplicated']
    link.send(120)
    assert link.kinds() == []


def test_what_arrives_out_of_order_is_named_and_used() -> None:
    link = Link()
    link.send(10)
    assert link.stream.arrived(ns(5.5 * PERIOD), ns(link.time))
    assert link.kinds() == ['reordered']


@pytest.mark.parametrize(('off', 'word'), [(-0.2, 'later'), (0.2, 'future')])
def test_stamps_that_step_by_200_ms_are_found_within_1_2_s_with_their_size(
        off: float, word: str) -> None:
    link = Link()
    link.send(60)
    link.send(37, off=off)
    assert 'stamps' in link.kinds()
    assert word in link.words()
    assert '0.2' in link.words() or '0.1' in link.words()


def test_sparse_xrays_with_stepped_stamps_are_found_by_the_third() -> None:
    link = Link(period=1.0)
    link.send(6)
    link.send(2, off=-0.2)
    assert link.kinds() == []
    link.send(1, off=-0.2)
    assert link.kinds() == ['stamps']


def test_a_pause_of_the_machine_is_no_wrong_stamp() -> None:
    """300 ms of nothing, then all that waited at once: once a second for ten seconds."""
    link = Link()
    link.send(60)
    for _ in range(10):
        stamps = [link.time + (step + 1) * PERIOD for step in range(9)]
        link.time = stamps[-1] + 0.05
        for stamp in stamps:
            link.stream.arrived(ns(stamp), ns(link.time))
            assert not link.stream.faults(ns(link.time))
        link.send(20)
        assert link.kinds() == []


def test_a_load_that_grows_slowly_is_no_wrong_stamp() -> None:
    link = Link()
    for step in range(600):
        link.send(1, delay=0.05 + 0.08 * step / 600)
        assert link.kinds() == []


def test_no_false_alarm_in_ten_minutes_of_a_good_connection() -> None:
    link = Link(seed=101)
    alarms = 0
    for _ in range(600):
        link.send(30)
        alarms += bool(link.kinds())
    assert alarms == 0


def test_a_clock_that_starts_over_is_no_disorder() -> None:
    link = Link()
    link.send(60)
    stream = link.stream
    link.time = -100.0
    link.send(20)
    assert stream.newest_ns == ns(link.time)
    assert link.kinds() == []


def test_the_doubt_in_a_single_late_stamp_is_how_late_it_is() -> None:
    link = Link()
    link.send(60)
    assert link.stream.doubt_s == 0.0
    link.send(1, delay=0.25)
    assert link.stream.doubt_s == pytest.approx(0.2, abs=0.03)
