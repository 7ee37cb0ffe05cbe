"""Playback: every frame once, at its time; and the tree that recorded poses make."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from rclpy.executors import SingleThreadedExecutor

from hybrid_guidance.geometry.projection import Projection
from hybrid_guidance.geometry.rigid import transform
from hybrid_guidance.imaging.frame import Frame, RecordedFrame, SourceError
from hybrid_guidance.ros.frames import Playback, choose_frames
from hybrid_guidance.ros.node import GuidanceNode

NAMES = {'Tracker': 'world', 'Probe': 'ultrasound_probe'}


@dataclass(frozen=True)
class NoParameters:
    pass


@dataclass
class Film:
    """A recording in which frame n has level n; ``damaged`` frames cannot be read."""

    times: tuple[float, ...]
    period: float
    damaged: tuple[int, ...] = ()
    decoding: float = 0.0
    notes: tuple[str, ...] = ()
    projection: Projection = field(
        default_factory=lambda: Projection.orthographic((1e-4, 1e-4), (0.0, 0.0), (4, 3)))
    decoded: list[tuple[int, float]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.times)

    def __getitem__(self, index: int) -> RecordedFrame:
        time.sleep(self.decoding)
        self.decoded.append((index, time.monotonic()))
        if index in self.damaged:
            raise SourceError(f'frame {index} is damaged')
        return RecordedFrame(np.full((3, 4), index, np.uint8), self.times[index],
                             {('Tracker', 'Probe'): transform()})


class Screen:
    """Stands for the publisher: keeps what is shown, and when."""

    def __init__(self) -> None:
        self.has_reader = True
        self.events: list[tuple[str, int, int]] = []
        self.shown_at: list[float] = []

    def publish(self, frame: Frame) -> None:
        self.events.append(('image', int(frame.pixels[0, 0]), frame.stamp_ns))
        self.shown_at.append(time.monotonic())

    def pose(self, recorded: RecordedFrame, stamp: int) -> None:
        self.events.append(('pose', int(recorded.pixels[0, 0]), stamp))

    @property
    def images(self) -> list[tuple[int, int]]:
        return [(level, stamp) for kind, level, stamp in self.events if kind == 'image']


class Stage:
    """A node with a screen, and the means to let time pass."""

    def __init__(self) -> None:
        self.node: GuidanceNode[NoParameters] = GuidanceNode('example_node', NoParameters)
        self.screen = Screen()
        self.executor = SingleThreadedExecutor()
        self.executor.add_node(self.node)

    def play(self, film: Any, loop: bool = True) -> Playback:
        def open_film(file: str) -> Any:
            if isinstance(film, Exception):
                raise film
            return film
        return Playback(self.node, self.screen, 'film', open_film, loop,  # type: ignore[arg-type]
                        self.screen.pose)

    def spin(self, until: Callable[[], bool], seconds: float = 5.0) -> None:
        deadline = time.monotonic() + seconds
        while not until() and time.monotonic() < deadline:
            self.executor.spin_once(timeout_sec=0.01)
        assert until()


@pytest.fixture
def stage(ros: None) -> Iterator[Stage]:
    one = Stage()
    yield one
    one.executor.shutdown()
    one.node.destroy_node()


FILM_TIMES = (0.0, 0.03, 0.08)


def test_frames_come_in_order_at_their_times_each_after_its_pose(stage: Stage) -> None:
    stage.play(Film(FILM_TIMES, 0.1))
    stage.spin(lambda: len(stage.screen.images) >= 10)
    levels, stamps = zip(*stage.screen.images, strict=True)
    assert list(levels) == [count % 3 for count in range(len(levels))]
    due = [count // 3 * 0.1 + FILM_TIMES[count % 3] for count in range(len(levels))]
    np.testing.assert_allclose(np.subtract(stamps, stamps[0]), np.multiply(due, 1e9), atol=2)
    for pose, image in zip(stage.screen.events[::2], stage.screen.events[1::2], strict=True):
        assert pose == ('pose', *image[1:])
        assert image[0] == 'image'
    assert stage.node.health.faults == {}


def test_a_frame_is_not_shown_before_its_time_and_decoded_before_it(stage: Stage) -> None:
    film = Film((0.0, 0.1, 0.2), 0.3, decoding=0.04)
    stage.play(film)
    stage.spin(lambda: len(stage.screen.images) >= 5)
    start = stage.screen.shown_at[0]
    for count, shown_at in enumerate(stage.screen.shown_at[1:5], start=1):
        assert shown_at - start > count * 0.1 - 0.02
        index, decoded_at = film.decoded[count]
        assert index == count % 3
        assert decoded_at < shown_at - 0.02


def test_after_a_delay_every_frame_comes_and_not_in_a_burst(
        stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Late, the next frame is due in half its usual time: no sooner, and never later."""
    waits: list[tuple[float, float]] = []
    wait = Playback._wait

    def watched(playback: Playback, late: float) -> None:
        wait(playback, late)
        waits.append((late, playback._timer.timer_period_ns * 1e-9))
    monkeypatch.setattr(Playback, '_wait', watched)
    stage.play(Film(tuple(np.arange(50) * 0.02), 1.0))
    stage.spin(lambda: len(stage.screen.images) >= 3)
    time.sleep(0.3)
    stage.spin(lambda: len(stage.screen.images) >= 60)
    levels, stamps = zip(*stage.screen.images, strict=True)
    assert list(levels) == [count % 50 for count in range(len(levels))]
    np.testing.assert_allclose(np.diff(stamps), 0.02e9, atol=2)
    # One that was very late has the next one waiting already.
    pauses = [pause for late, pause in waits if late > 0.04]
    assert len(pauses) > 10
    np.testing.assert_allclose(pauses, 0.01, atol=1e-6)
    assert not stage.node.health.faults
    assert int(stage.node.health._values['late']) > 10


def test_what_a_long_stall_left_out_is_counted_and_said(stage: Stage) -> None:
    said = []
    stage.play(Film(tuple(np.arange(50) * 0.02), 1.0))
    stage.spin(lambda: len(stage.screen.images) >= 3)
    time.sleep(1.3)
    before = len(stage.screen.images)
    stage.spin(lambda: said.append(stage.node.health.faults.get('pace'))
               or len(stage.screen.images) >= before + 5)
    counts = [round((stamp - stage.screen.images[0][1]) / 0.02e9)
              for _, stamp in stage.screen.images]
    assert [level for level, _ in stage.screen.images] == [count % 50 for count in counts]
    (jump,) = [later - earlier - 1 for earlier, later in pairwise(counts) if later > earlier + 1]
    assert jump >= 55
    assert stage.node.health._values['left out'] == str(jump)
    assert any(words and words.endswith(f' s: {jump} frames left out')
               for words in said)
    assert 'pace' not in stage.node.health.faults


def test_played_once_it_waits_for_a_reader_and_ends_in_words(stage: Stage) -> None:
    stage.screen.has_reader = False
    stage.play(Film(FILM_TIMES, 0.1), loop=False)
    stage.spin(lambda: 'source' in stage.node.health.faults)
    assert stage.node.health.faults['source'] == 'the recording waits for a reader'
    assert stage.screen.images == []
    stage.screen.has_reader = True
    stage.spin(lambda: stage.node.health.faults.get('source') == 'the recording has ended')
    deadline = time.monotonic() + 0.15
    stage.spin(lambda: time.monotonic() > deadline)
    assert [level for level, _ in stage.screen.images] == [0, 1, 2]


def test_damaged_frames_are_left_out_and_said_until_the_end(stage: Stage) -> None:
    stage.play(Film((0.0, 0.02, 0.04, 0.06), 0.08, damaged=(1, 3)))
    stage.spin(lambda: len(stage.screen.images) >= 6)
    assert [level for level, _ in stage.screen.images][:6] == [0, 2, 0, 2, 0, 2]
    assert stage.node.health.faults == {
        'frames': '2 of 4 are damaged and left out; the first: frame 1 is damaged'}


@pytest.mark.parametrize(('film', 'words'), [
    (SourceError('a.dcm: no such file; check the path'), 'no source: a.dcm: no such file'),
    (PermissionError(13, 'Permission denied', 'a.dcm'), 'no source: [Errno 13] Permission denied'),
    (Film((0.0, 1.0), 0.5), 'no source: a loop of 0.5 s ends before its last frame'),
    (Film((), 1.0), 'no source: a player needs at least one frame')])
def test_what_cannot_be_opened_leaves_a_node_that_says_so(stage: Stage, film: Any,
                                                          words: str) -> None:
    stage.play(film)
    assert words in stage.node.health.faults['source']
    deadline = time.monotonic() + 0.1
    stage.spin(lambda: time.monotonic() > deadline)
    assert stage.screen.events == []


def test_why_a_recording_is_uncalibrated_is_said(stage: Stage) -> None:
    film = Film(FILM_TIMES, 0.1, notes=('15 frames per second assumed', 'uncalibrated: no scale'),
                projection=Projection.uncalibrated((4, 3)))
    stage.play(film)
    assert stage.node.health.faults['geometry'] == 'uncalibrated: no scale'


# Pairs are (parent, child), as recordings keep them.


def test_names_are_mapped_or_become_snake_case() -> None:
    pairs = [('Tracker', 'Probe'), ('Tracker', 'StylusTip'), ('Probe', 'USImage'),
             ('Tracker', 'Sphere1A')]
    chosen, refused = choose_frames(pairs, NAMES)
    assert refused == ()
    assert [frames for frames, _ in chosen.values()] == [
        ('world', 'ultrasound_probe'), ('world', 'stylus_tip'), ('world', 'sphere1_a'),
        ('ultrasound_probe', 'us_image')]


def test_a_transform_to_the_root_is_turned_round() -> None:
    """With the patient's reference as the world, ``ReferenceToTracker`` says where that is."""
    names = {'Reference': 'world', 'Probe': 'ultrasound_probe'}
    chosen, refused = choose_frames([('Tracker', 'Probe'), ('Tracker', 'Reference')], names)
    assert refused == ()
    assert chosen == {('Tracker', 'Reference'): (('world', 'tracker'), True),
                      ('Tracker', 'Probe'): (('tracker', 'ultrasound_probe'), False)}


@pytest.mark.parametrize(('pairs', 'kept', 'reason'), [
    ([('Reference', 'Probe'), ('Tracker', 'Probe')], ('Tracker', 'Probe'),
     'ProbeToReference is not published: ultrasound_probe has the parent world already'),
    ([('A', 'B'), ('B', 'A')], ('A', 'B'), 'AToB is not published: a would be its own ancestor'),
    ([('Tracker', 'Probe'), ('X', 'X')], ('Tracker', 'Probe'), 'x would be its own ancestor'),
    ([('Tracker', 'Probe'), ('Tracker', 'Tracker')], ('Tracker', 'Probe'),
     'world would be its own ancestor'),
    ([('Tracker', 'Probe'), ('Probe', 'Patient')], ('Tracker', 'Probe'),
     'patient belongs to the graph; give it another name'),
    ([('Tracker', 'Probe'), ('NeedleTip', 'Tracker')], ('Tracker', 'Probe'),
     'needle_tip belongs to the graph'),
    ([('Tracker', 'StylusTip'), ('Tracker', 'Stylus_Tip')], ('Tracker', 'StylusTip'),
     'stylus_tip has the parent world already'),
])
def test_what_makes_no_tree_is_left_out_with_the_reason(
        pairs: list[tuple[str, str]], kept: tuple[str, str], reason: str) -> None:
    chosen, refused = choose_frames(pairs, NAMES)
    assert list(chosen) == [kept]
    assert len(refused) == 1
    assert reason in refused[0]
