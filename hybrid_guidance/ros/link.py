"""What an OpenIGTLink server sends beside images: poses to /tf, statuses to /diagnostics."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hybrid_guidance.geometry.rigid import inverse
from hybrid_guidance.geometry.types import Transform
from hybrid_guidance.imaging.link_client import LinkStream
from hybrid_guidance.imaging.openigtlink import RAS_T_LPS, LinkPose
from hybrid_guidance.parameters import ParameterError
from hybrid_guidance.ros import tf
from hybrid_guidance.ros.convert import transform_message
from hybrid_guidance.ros.frames import Pair, choose_frames, given_names
from hybrid_guidance.ros.health import ERROR
from hybrid_guidance.ros.node import GuidanceNode

_HALVES = re.compile(r'(.+?)To([A-Z0-9].*)$')
_TRACKER = 'Tracker'
_MOST = 64


@dataclass(frozen=True)
class LinkNames:
    """What the names of a server mean here.

    Attributes:
        halves: half of a name such as ``ProbeToTracker`` to its frame.
        whole: a name without halves to its (parent, child).
    """

    halves: Mapping[str, str]
    whole: Mapping[str, Pair]

    @classmethod
    def parse(cls, frames: str) -> 'LinkNames':
        """Read ``Recorded=frame`` and ``Name=parent:child`` words.

        Raises:
            ParameterError: not of that form.
        """
        words = frames.split()
        return cls(given_names(' '.join(word for word in words if ':' not in word)),
                   dict(_whole_name(word) for word in words if ':' in word))


class LinkReport:
    """Publishes the poses of one server under the names of this graph, and says what it says.

    A pose named ``ProbeToTracker`` takes points of the probe to the tracker: ``Probe`` is the
    child. A tool of TDATA or QTDATA without such halves is a child of ``Tracker``. The frame that
    a server calls ``RAS`` becomes LPS, as every patient frame of this graph.

    Args:
        node: the node.
        stream: the server.
        names: what its names mean here; with none, no poses are published.
    """

    def __init__(self, node: GuidanceNode[Any], stream: LinkStream, names: LinkNames) -> None:
        self._node, self._stream = node, stream
        self._whole, self._names = names.whole, names.halves
        self._wanted = bool(names.whole or names.halves)
        self._pairs: dict[Pair, None] = {}
        self._chosen: dict[Pair, tuple[Pair, bool]] = {}
        self._trouble: dict[str, str] = {}
        self._published = 0
        self._broadcaster = tf.TransformBroadcaster(node) if self._wanted else None

    def publish_poses(self) -> None:
        """Publish every pose that has come, at its stamp."""
        transforms = []
        while (timed := self._stream.take_pose()) is not None:
            placed = self._place(timed.pose) if self._wanted else None
            if placed is not None:
                (parent, child), matrix = placed
                transforms.append(transform_message(parent, child, timed.stamp_ns, matrix))
        if transforms and self._broadcaster is not None:
            self._broadcaster.sendTransform(transforms)
            self._published += len(transforms)

    def say(self) -> None:
        """Tell on /diagnostics how the server and its devices are."""
        health = self._node.health
        health.set('messages', not self._stream.refused, self._stream.refused)
        health.set('poses', not self._trouble, '; '.join(self._trouble.values()))
        for status in self._stream.statuses:
            health.set(f'device {status.device}', status.code == 1, status.words, ERROR)
        health.value('poses', self._published)
        for key, value in self._stream.values.items():
            health.value(key, value)

    def _place(self, pose: LinkPose) -> tuple[Pair, Transform] | None:
        """Return (parent, child) and the pose between them; None where it has no place."""
        pair = self._whole.get(pose.name) or _halves(pose)
        if pair is None:
            self._doubt(pose.name, f'{pose.name} is not published: its name says no parent; add '
                                   f'{pose.name}=parent:child to link_frames')
            return None
        if pair not in self._pairs:
            self._choose(pair)
        if pair not in self._chosen:
            return None
        frames, is_inverted = self._chosen[pair]
        matrix = _in_lps(pair, pose.matrix)
        return frames, inverse(matrix) if is_inverted else matrix

    def _choose(self, pair: Pair) -> None:
        if len(self._pairs) >= _MOST:
            self._doubt('', f'more than {_MOST} names of poses: the others are not published')
            return
        self._pairs[pair] = None
        self._chosen, refused = choose_frames(self._pairs, self._names)
        for words in refused:
            self._doubt(words.partition(' ')[0], words.replace('sequence_frames', 'link_frames'))

    def _doubt(self, name: str, words: str) -> None:
        if len(self._trouble) < _MOST:
            self._trouble[name] = words


def _halves(pose: LinkPose) -> Pair | None:
    match = _HALVES.match(pose.name)
    if match:
        return match[2], match[1]
    return (_TRACKER, pose.name) if pose.is_tool else None


def _in_lps(pair: Pair, parent_T_child: Transform) -> Transform:
    """Return the pose with the frame ``RAS``, if it is one of the two, in LPS axes."""
    parent, child = pair
    matrix = RAS_T_LPS @ parent_T_child if parent == 'RAS' else parent_T_child
    return matrix @ RAS_T_LPS if child == 'RAS' else matrix


def _whole_name(word: str) -> tuple[str, Pair]:
    """Parse ``Name=parent:child``."""
    match = re.fullmatch(r'([^=]+)=(\w+):(\w+)', word)
    if match is None:
        raise ParameterError(f'link_frames: "{word}" is not of the form Name=parent:child, such '
                             'as Needle=world:needle')
    return match[1], (match[2], match[3])
