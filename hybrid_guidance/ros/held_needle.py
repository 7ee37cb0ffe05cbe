"""A simulated hand that follows commands as soon as the display shows their moment."""

from collections.abc import Callable

from hybrid_guidance.fusion.frame_tree import FrameTree, FrameTreeError, FutureError
from hybrid_guidance.geometry.types import Transform
from hybrid_guidance.ros import tf
from hybrid_guidance.simulation.hand import Hand


class HeldNeedle:
    """A needle in a hand, and the command it was given last.

    Args:
        hand: holds the needle.
        shown: returns the needle that the display shows at a stamp in ns; raises like tf.
        warn: told what keeps a command from being followed.
        now_ns: of the start.
    """

    def __init__(self, hand: Hand, shown: Callable[[int], Transform],
                 warn: Callable[[str], object], now_ns: int) -> None:
        self._hand, self._shown, self._warn = hand, shown, warn
        # What the hand meant to hold: its tremor is no motion to be repeated.
        self._history = FrameTree(cache_s=2.0)
        self._command: tuple[Transform, int] | None = None
        self._last_ns = self._command_ns = now_ns

    @property
    def pose(self) -> Transform:
        """The (4, 4) true pose of the needle, if it were rigid."""
        return self._hand.pose

    def command(self, told: Transform, stamp_ns: int, now_ns: int) -> None:
        """Take a pose to go to, made of the display of a stamp."""
        self._command, self._command_ns = (told, stamp_ns), now_ns
        self._obey()

    def advance(self, now_ns: int, timeout: float) -> None:
        """Let time pass; without a command for ``timeout`` seconds the hand stops."""
        dt = (now_ns - self._last_ns) * 1e-9
        if dt < 0.0:
            # The clock was set back: what was recorded under the old time is void.
            self._history.clear()
        self._last_ns = now_ns
        if (now_ns - self._command_ns) * 1e-9 > timeout:
            self._command = None
            self._hand.stop()
        self._obey()
        self._hand.advance(min(max(dt, 0.0), 0.1))
        self._history.set('patient', 'needle', now_ns, self._hand.held)

    def _obey(self) -> None:
        """Turn the last command into a goal, as soon as the display shows its moment."""
        if self._command is None:
            return
        told, stamp = self._command
        try:
            shown = self._shown(stamp)
            self._hand.follow(told, shown, self._history.lookup('patient', 'needle', stamp))
        except tf.LookupException:
            self._hand.follow(told, None, self._hand.held)
        except (tf.FutureException, FutureError):
            return
        except (tf.TransformException, FrameTreeError) as error:
            self._warn(f'a command cannot be followed: {error}')
        self._command = None
