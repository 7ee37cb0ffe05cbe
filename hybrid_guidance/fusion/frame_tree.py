"""Frames over time: where each was at a stamp, interpolated, never extrapolated."""

from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field

import numpy as np

from hybrid_guidance.geometry.rigid import interpolate, inverse, is_rigid
from hybrid_guidance.geometry.types import Transform

LATEST = 0
"""As a stamp: the newest time at which the whole chain is known (tf's time zero)."""


class FrameTreeError(Exception):
    """A transform that was refused or cannot be given; the message says why."""


class UnknownFrameError(FrameTreeError):
    """Nobody has published this frame."""


class DisconnectedError(FrameTreeError):
    """Both frames exist, and no chain joins them."""


class ExtrapolationError(FrameTreeError):
    """The stamp lies outside what is known."""


class FutureError(ExtrapolationError):
    """The stamp is newer than what is known; it may come."""


class PastError(ExtrapolationError):
    """The stamp is older than what is kept; it will not come back."""


class RefusedError(FrameTreeError):
    """A transform that would break the tree: a loop, a second parent, not a rigid transform."""


class Parentage:
    """Who is whose parent; refuses what would make it anything but a tree."""

    def __init__(self) -> None:
        self._parents: dict[str, str] = {}

    def ancestry(self, frame: str) -> list[str]:
        """Return the frames from ``frame`` up to, and without, its root."""
        chain = []
        while frame in self._parents:
            chain.append(frame)
            frame = self._parents[frame]
        return chain

    def root(self, frame: str) -> str:
        """Return the frame at the top of the tree that ``frame`` is in."""
        chain = self.ancestry(frame)
        return self._parents[chain[-1]] if chain else frame

    def add(self, parent: str, child: str) -> None:
        """Remember a link.

        Raises:
            RefusedError: a name is empty, the child has another parent, or a loop would close.
        """
        known = self._parents.get(child)
        if known == parent:
            return
        if not parent or not child:
            raise RefusedError(f'"{parent}" -> "{child}": a frame needs a name')
        if known is not None:
            raise RefusedError(f'{parent} -> {child}: "{child}" already has the parent '
                               f'"{known}"; stop one of the two publishers')
        if child in (*self.ancestry(parent), self.root(parent)):
            raise RefusedError(f'{parent} -> {child}: would close a loop')
        self._parents[child] = parent

    def parent(self, child: str) -> str:
        """Return the parent of a frame that has one."""
        return self._parents[child]

    def knows(self, frame: str) -> bool:
        """Tell whether a frame was named so far."""
        return frame in self._parents or frame in self._parents.values()

    def frames(self) -> set[str]:
        """Return every frame named so far."""
        return set(self._parents) | set(self._parents.values())

    def keep(self, children: set[str]) -> None:
        """Forget every link but those of ``children``."""
        self._parents = {child: parent for child, parent in self._parents.items()
                         if child in children}


@dataclass
class _Edge:
    static: bool
    stamps: list[int] = field(default_factory=list)
    transforms: list[Transform] = field(default_factory=list)


class FrameTree:
    """A tree of frames, each with the recent history of its pose in its parent.

    Args:
        cache_s: how much history to keep behind the newest stamp of each frame, seconds.
    """

    def __init__(self, cache_s: float = 10.0) -> None:
        self._cache_ns = int(cache_s * 1e9)
        self._edges: dict[str, _Edge] = {}
        self._parentage = Parentage()

    def clear(self) -> None:
        """Forget everything that moves; static transforms stay (they are published once)."""
        self._edges = {child: edge for child, edge in self._edges.items() if edge.static}
        self._parentage.keep(set(self._edges))

    def frames(self) -> set[str]:
        """Return the names of all frames that have been heard of."""
        return self._parentage.frames()

    def set(self, parent: str, child: str, stamp_ns: int, parent_T_child: Transform,
            static: bool = False) -> None:
        """Add where ``child`` was in ``parent`` at ``stamp_ns`` (ignored for a static one).

        A stamp equal to a known one replaces it; one older than the history is dropped.

        Raises:
            RefusedError: not rigid or finite, a loop, a second parent, no name.
        """
        if not is_rigid(parent_T_child):
            raise RefusedError(f'{parent} -> {child}: not a finite rigid transform')
        self._parentage.add(parent, child)
        edge = self._edges.setdefault(child, _Edge(static))
        edge.static = static
        if static:
            edge.stamps, edge.transforms = [0], [parent_T_child]
            return
        index = bisect_left(edge.stamps, stamp_ns)
        if index < len(edge.stamps) and edge.stamps[index] == stamp_ns:
            edge.transforms[index] = parent_T_child
        elif not edge.stamps or stamp_ns >= edge.stamps[-1] - self._cache_ns:
            edge.stamps.insert(index, stamp_ns)
            edge.transforms.insert(index, parent_T_child)
        self._forget(edge)

    def lookup(self, target: str, source: str, stamp_ns: int) -> Transform:
        """Return ``target_T_source`` at a stamp, or at the newest common time for ``LATEST``.

        Raises:
            UnknownFrameError, DisconnectedError, FutureError, PastError: as their names say.
        """
        return self.lookup_stamped(target, source, stamp_ns)[0]

    def lookup_stamped(self, target: str, source: str, stamp_ns: int) -> tuple[Transform, int]:
        """Like ``lookup``, with the time it is valid for (0 when every link is static)."""
        up, down = self._chain(target, source)
        if stamp_ns == LATEST:
            newest = [self._edges[child].stamps[-1] for child in (*up, *down)
                      if not self._edges[child].static]
            stamp_ns = min(newest, default=LATEST)
        root_T_source = self._root_T(up, stamp_ns)
        if not down:
            return root_T_source, stamp_ns
        return inverse(self._root_T(down, stamp_ns)) @ root_T_source, stamp_ns

    def _root_T(self, children: list[str], stamp_ns: int) -> Transform:
        if not children:
            return np.eye(4)
        result = self._at(children[0], stamp_ns).copy()
        for child in children[1:]:
            result = self._at(child, stamp_ns) @ result
        return result

    def _at(self, child: str, stamp_ns: int) -> Transform:
        edge = self._edges[child]
        if edge.static:
            return edge.transforms[0]
        after = bisect_right(edge.stamps, stamp_ns)
        if after and edge.stamps[after - 1] == stamp_ns:
            return edge.transforms[after - 1]
        link = f'{self._parentage.parent(child)} -> {child}'
        if after == len(edge.stamps):
            raise FutureError(
                f'{link}: asked for the future: {stamp_ns * 1e-9:.6f} s is '
                f'{(stamp_ns - edge.stamps[-1]) * 1e-6:.1f} ms after the newest transform')
        if after == 0:
            raise PastError(
                f'{link}: asked for the past: {stamp_ns * 1e-9:.6f} s is '
                f'{(edge.stamps[0] - stamp_ns) * 1e-6:.1f} ms before the oldest transform kept')
        begin, end = edge.stamps[after - 1], edge.stamps[after]
        return interpolate(edge.transforms[after - 1], edge.transforms[after],
                           (stamp_ns - begin) / (end - begin))

    def _chain(self, target: str, source: str) -> tuple[list[str], list[str]]:
        for frame in (target, source):
            if not self._parentage.knows(frame):
                known = ', '.join(sorted(self.frames())) or 'none'
                raise UnknownFrameError(f'no frame "{frame}"; known frames: {known}')
        up, down = self._parentage.ancestry(source), self._parentage.ancestry(target)
        while up and down and up[-1] == down[-1]:
            up.pop()
            down.pop()
        top_up = self._parentage.parent(up[-1]) if up else source
        top_down = self._parentage.parent(down[-1]) if down else target
        if top_up != top_down:
            raise DisconnectedError(f'"{target}" and "{source}" are in two separate trees')
        return up, down

    def _forget(self, edge: _Edge) -> None:
        old = bisect_left(edge.stamps, edge.stamps[-1] - self._cache_ns) if edge.stamps else 0
        if old:
            del edge.stamps[:old], edge.transforms[:old]
