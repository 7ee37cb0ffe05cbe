"""Publishing images: an image and its camera_info, always together; and recordings of them."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from rclpy.node import Node
from sensor_msgs.msg import CameraInfo, Image

from hybrid_guidance.geometry.rigid import inverse
from hybrid_guidance.imaging.frame import Frame, RecordedFrame, Recording, SourceError
from hybrid_guidance.imaging.player import Player, frame_times
from hybrid_guidance.imaging.sequence import snake_case
from hybrid_guidance.parameters import ParameterError
from hybrid_guidance.ros import qos, tf
from hybrid_guidance.ros.convert import camera_info_message, image_message, transform_message
from hybrid_guidance.ros.health import ERROR
from hybrid_guidance.ros.node import GuidanceNode

ROOT = 'world'
OWN_FRAMES = frozenset({
    'fluoroscopy_optical_frame', 'ultrasound_image', 'patient', 'plan', 'needle_tip'})
"""Frames that the graph publishes itself: a recording must not give them a second parent."""

_STALL = 1.0
_WAIT = 0.02
_SHORTEST = 1e-4

Pair = tuple[str, str]
"""(parent, child) frame."""


class FramePublisher:
    """Publishes the frames of one sensor.

    Args:
        node: the publisher's node.
        sensor: ``fluoroscopy`` or ``ultrasound``.
        frame_id: of the sensor.
        before: called with the stamp (ns) of each frame before it is published.
    """

    def __init__(self, node: Node, sensor: str, frame_id: str,
                 before: Callable[[int], None] = lambda stamp: None) -> None:
        self._frame_id, self._before = frame_id, before
        self._info = node.create_publisher(CameraInfo, f'{sensor}/camera_info', qos.CAMERA_INFO)
        self._image = node.create_publisher(Image, f'{sensor}/image_raw', qos.IMAGE)

    @property
    def has_reader(self) -> bool:
        """Whether anybody takes both image and camera_info."""
        return bool(self._info.get_subscription_count() and self._image.get_subscription_count())

    def publish(self, frame: Frame) -> None:
        """Publish one frame."""
        self._before(frame.stamp_ns)
        self._info.publish(camera_info_message(frame.projection, self._frame_id, frame.stamp_ns))
        self._image.publish(image_message(frame.pixels, self._frame_id, frame.stamp_ns))


class Playback:
    """Plays a recording at its own times, stamped with when each frame would have been taken.

    Each frame is decoded before it is due, so that decoding delays nothing. After a delay every
    frame still comes, at most twice as fast as recorded, because a reader keeps the latest image
    only; after more than a second the frames missed meanwhile are left out, and counted. A
    recording that plays once waits for its first reader. What cannot be read is said on the log
    and on /diagnostics, and the node stays up.

    Args:
        node: the node.
        publisher: where the frames go.
        file: the recording.
        open_recording: opens the file; may raise SourceError.
        loop: start over at the end.
        on_frame: called with (recorded frame, stamp in ns) before each image is published.
    """

    def __init__(self, node: GuidanceNode[Any], publisher: FramePublisher, file: str,
                 open_recording: Callable[[str], Recording], loop: bool,
                 on_frame: Callable[[RecordedFrame, int], None] | None = None) -> None:
        self._node, self._publisher, self._on_frame = node, publisher, on_frame
        self._loop = loop
        try:
            if not file:
                raise SourceError('the parameter "file" is empty; name the recording to play')
            self._recording = open_recording(file)
            self._player = Player(self._recording, loop)
            times = (*frame_times(self._recording), self._recording.period)
        except (SourceError, ValueError, OSError) as error:
            node.health.set('source', False, f'no source: {error}', ERROR)
            return
        self._usual = max(float(np.median(np.diff(times))), _SHORTEST)
        self._say_what_it_is(file)
        self._waiting = range(0)
        self._shown = self._late = self._left_out = 0
        self._damaged: dict[int, str] = {}
        self._start_ns: int | None = None
        self._ready = 0, self._decode(0)
        self._timer = node.create_timer(_WAIT, self._tick)

    def _say_what_it_is(self, file: str) -> None:
        health, notes = self._node.health, self._recording.notes
        health.value('recording', f'{file}, {len(self._recording)} frames, '
                     f'{self._recording.period:.3f} s, {"looped" if self._loop else "once"}')
        for note in notes:
            self._node.get_logger().info(note)
        reason = next((note for note in notes if note.startswith('uncalibrated')),
                      'uncalibrated: the file says nothing of its geometry')
        health.set('geometry', self._recording.projection.is_calibrated, reason)

    def _tick(self) -> None:
        if self._start_ns is None:
            waits = not self._loop and not self._publisher.has_reader
            self._node.health.set('source', not waits, 'the recording waits for a reader')
            if waits:
                return
            self._start_ns = self._node.now_ns()
        self._waiting = range(self._waiting.start, self._player.due(self._elapsed()).stop)
        delay = self._show_next() if self._waiting else 0.0
        self._wait(delay)

    def _elapsed(self) -> float:
        assert self._start_ns is not None
        return (self._node.now_ns() - self._start_ns) * 1e-9

    def _show_next(self) -> float:
        """Show one frame that is due; return how many seconds late."""
        late = self._elapsed() - self._player.time_of(self._waiting.start)
        if late > _STALL and len(self._waiting) > 1:
            self._leave_out(late)
        else:
            self._node.health.set('pace', True)
        count = self._waiting.start
        self._waiting = range(count + 1, self._waiting.stop)
        late = self._elapsed() - self._player.time_of(count)
        self._late += late > self._usual
        try:
            self._show(count)
        finally:
            self._ready = count + 1, self._decode(count + 1)
        return late

    def _leave_out(self, late: float) -> None:
        missed = len(self._waiting) - 1
        self._left_out += missed
        self._waiting = self._waiting[-1:]
        self._node.health.set('pace', False, (
            f'stood still for {late:.1f} s: {missed} frames left out'))

    def _show(self, count: int) -> None:
        ready, recorded = self._ready
        recorded = recorded if ready == count else self._decode(count)
        if recorded is None:
            return
        assert self._start_ns is not None
        stamp = self._start_ns + round(self._player.time_of(count) * 1e9)
        if self._on_frame is not None:
            self._on_frame(recorded, stamp)
        # A file of poses only has one black pixel in place of each image.
        if recorded.pixels.size > 1:
            self._publisher.publish(Frame(recorded.pixels, stamp, self._recording.projection))
        self._shown += 1
        self._count()

    def _count(self) -> None:
        for key, number in (('frames', self._shown), ('late', self._late),
                            ('left out', self._left_out)):
            self._node.health.value(key, number)

    def _wait(self, late: float) -> None:
        """Set the timer for the next frame, or end."""
        upcoming = (self._player.time_of(self._waiting.start) if self._waiting
                    else self._player.next_time)
        if upcoming is None:
            self._node.destroy_timer(self._timer)
            self._node.health.set('source', False, 'the recording has ended')
            return
        apart = 0.5 * self._usual if late > 0.5 * self._usual else _SHORTEST
        self._timer.timer_period_ns = int(max(upcoming - self._elapsed(), apart) * 1e9)
        self._timer.reset()

    def _decode(self, count: int) -> RecordedFrame | None:
        turn, index = self._player.locate(count)
        if turn and not self._loop:
            return None
        try:
            return self._recording[index]
        except SourceError as error:
            self._damaged[index] = str(error)
            self._node.health.set('frames', False, (
                f'{len(self._damaged)} of {len(self._recording)} are damaged and left out; '
                f'the first: {next(iter(self._damaged.values()))}'), ERROR)
            return None


class RecordedPoses:
    """Publishes the poses recorded with each image on /tf, under the names of this graph.

    Args:
        node: the node.
        names: ``Recorded=frame`` pairs with spaces between; other names become snake_case.

    Raises:
        ParameterError: ``names`` is not of that form.
    """

    def __init__(self, node: GuidanceNode[Any], names: str) -> None:
        self._node = node
        self._names = given_names(names, 'sequence_frames')
        self._chosen: dict[Pair, tuple[Pair, bool]] = {}
        self._broadcaster = tf.TransformBroadcaster(node)

    def choose(self, pairs: Iterable[Pair]) -> None:
        """Choose what to publish of the recorded (parent, child) pairs, and say what not."""
        pairs = tuple(pairs)
        self._chosen, refused = choose_frames(pairs, self._names)
        if pairs and not any(child == 'ultrasound_probe' for (_, child), _ in
                             self._chosen.values()):
            refused += ('no pose of ultrasound_probe is recorded; name the frame that is it in '
                        'sequence_frames',)
        self._node.health.set('poses', not refused, '; '.join(refused))

    def __call__(self, recorded: RecordedFrame, stamp: int) -> None:
        """Publish the good poses of one frame at its stamp (ns)."""
        transforms = []
        for pair, matrix in recorded.transforms.items():
            if pair in self._chosen:
                (parent, child), is_inverted = self._chosen[pair]
                transforms.append(transform_message(
                    parent, child, stamp, inverse(matrix) if is_inverted else matrix))
        if transforms:
            self._broadcaster.sendTransform(transforms)


def given_names(text: str, parameter: str = 'link_frames') -> dict[str, str]:
    """Parse ``Recorded=frame`` pairs.

    Raises:
        ParameterError: ``text``, of the parameter so named, is not of that form.
    """
    names: dict[str, str] = {}
    for word in text.split():
        recorded, _, frame = word.partition('=')
        if not recorded or not re.fullmatch(r'\w+', frame):
            raise ParameterError(f'{parameter}: "{word}" is not of the form Recorded=frame, '
                                 'such as Probe=ultrasound_probe')
        names[recorded] = frame
    return names


def choose_frames(pairs: Iterable[Pair], names: Mapping[str, str]) -> tuple[
        dict[Pair, tuple[Pair, bool]], tuple[str, ...]]:
    """Make a tree of recorded transforms: one parent for each frame, no loop, root ``world``.

    A transform whose child is the root is turned round. Of several parents the root is kept,
    else the first.

    Args:
        pairs: (parent, child) as recorded.
        names: recorded name to frame; others become snake_case.

    Returns:
        For each usable pair the (parent, child) frames and whether it is to be inverted; and
        in words why the others are not usable.
    """
    wanted = []
    for pair in pairs:
        parent, child = (names.get(name) or snake_case(name) for name in pair)
        is_inverted = child == ROOT
        wanted.append((pair, (child, parent) if is_inverted else (parent, child), is_inverted))
    chosen: dict[Pair, tuple[Pair, bool]] = {}
    parents: dict[str, str] = {}
    refused = []
    for pair, (parent, child), is_inverted in sorted(wanted, key=lambda one: one[1][0] != ROOT):
        reason = _refusal(parent, child, parents)
        if reason:
            refused.append(f'{pair[1]}To{pair[0]} is not published: {reason}')
            continue
        parents[child] = parent
        chosen[pair] = (parent, child), is_inverted
    return chosen, tuple(refused)


def _refusal(parent: str, child: str, parents: Mapping[str, str]) -> str:
    """Return why a transform has no place in the tree, or nothing."""
    if child in OWN_FRAMES:
        return f'{child} belongs to the graph; give it another name in sequence_frames'
    if child in parents:
        return f'{child} has the parent {parents[child]} already'
    ancestor: str | None = parent
    while ancestor is not None:
        if ancestor == child:
            return f'{child} would be its own ancestor'
        ancestor = parents.get(ancestor)
    return ''
