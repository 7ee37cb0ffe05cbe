"""Holds what was observed back until the pose of its sensor at that time has arrived."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from hybrid_guidance.geometry.covariance import diagonal
from hybrid_guidance.geometry.types import Array, Transform
from hybrid_guidance.parameters import parameter
from hybrid_guidance.ros import tf
from hybrid_guidance.ros.node import GuidanceNode

Thing = TypeVar('Thing')


@dataclass(frozen=True)
class TrackedPoseParameters:
    """Parameters of tracked poses."""

    tracking_position: float = parameter(0.1e-3, low=0.0, high=0.01, unit='m',
                                         meaning='deviation of one tracked position')
    tracking_rotation: float = parameter(0.001, low=0.0, high=0.1, unit='rad', meaning=(
        'deviation of one tracked rotation of the probe'))
    carm_rotation: float = parameter(0.0002, low=0.0, high=0.1, unit='rad', meaning=(
        'deviation of one tracked rotation of the C-arm'))
    wait: float = parameter(0.3, low=0.01, high=5.0, unit='s', meaning=(
        'how long a needle waits for the tracked pose at its time'))

    def tracking(self, name: str) -> Array:
        """Return the (6, 6) covariance of one tracked pose of what carries a sensor."""
        return diagonal(self.tracking_position, self.carm_rotation if name == 'fluoroscopy'
                        else self.tracking_rotation)


class WaitingForPose(Generic[Thing]):
    """A queue that is worked off as transforms arrive; nothing is ever extrapolated.

    Args:
        node: looks poses up and says on its health which are missing.
        take: called with the thing and (4, 4) ``world_T_frame`` at its stamp.
        wait_s: returns how long a thing may wait before it is given up.
        ready: tells of a stamp whether all else is known that ``take`` needs; a thing that has
            waited long enough is taken without.
    """

    def __init__(self, node: GuidanceNode, take: Callable[[Thing, Transform], None],  # type: ignore[type-arg]
                 wait_s: Callable[[], float],
                 ready: Callable[[int], bool] = lambda stamp_ns: True) -> None:
        self._node, self._take, self._wait_s, self._ready = node, take, wait_s, ready
        self._waiting: deque[tuple[str, int, Thing]] = deque()

    def add(self, frame: str, stamp_ns: int, thing: Thing) -> None:
        """Take ``thing`` once the pose of ``frame`` at ``stamp_ns`` is known."""
        self._waiting.append((frame, stamp_ns, thing))
        self.work()

    def work(self) -> None:
        """Take everything whose pose is known by now."""
        for _ in range(len(self._waiting)):
            frame, stamp, thing = self._waiting.popleft()
            if not self._ready(stamp) and (self._node.now_ns() - stamp) * 1e-9 < self._wait_s():
                self._waiting.append((frame, stamp, thing))
                continue
            try:
                world_T_frame = self._node.lookup('world', frame, stamp)
            except (tf.FutureException, tf.LookupException, tf.ConnectivityException) as error:
                if (self._node.now_ns() - stamp) * 1e-9 < self._wait_s():
                    self._waiting.append((frame, stamp, thing))
                else:
                    self._node.health.set(f'tf of {frame}', False, f'not tracked: {error}')
            except tf.TransformException as error:
                self._node.health.set(f'tf of {frame}', False, str(error))
            else:
                self._node.health.set(f'tf of {frame}', True)
                self._take(thing, world_T_frame)
