"""What every image is from its source to its last reader."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from hybrid_guidance.geometry.projection import Projection
from hybrid_guidance.geometry.types import Image, Transform


class SourceError(Exception):
    """An image source that cannot be used; the message says what, where and what to do."""


@dataclass(frozen=True)
class Frame:
    """One image.

    Attributes:
        pixels: (H, W) uint8 or uint16.
        stamp_ns: acquisition time, nanoseconds of the graph's clock.
        projection: metres in the sensor's frame to pixels; may be uncalibrated.
    """

    pixels: Image
    stamp_ns: int
    projection: Projection


@dataclass(frozen=True)
class RecordedFrame:
    """One image of a recording.

    Attributes:
        pixels: (H, W) uint8 or uint16.
        time: seconds since the first frame of the recording.
        transforms: (parent, child) to (4, 4) ``parent_T_child`` in metres, as recorded with
            this image; poses that the recording marks as bad are not in it.
    """

    pixels: Image
    time: float
    transforms: Mapping[tuple[str, str], Transform] = field(default_factory=dict)


class Recording(Protocol):
    """A finite series of images with one projection.

    Attributes:
        projection: of every image.
        period: seconds from the first frame to where a loop starts over.
        notes: what a user should know, in words (for example why it is uncalibrated).
    """

    projection: Projection
    period: float
    notes: tuple[str, ...]

    def __len__(self) -> int:
        """Number of frames, at least one."""
        ...

    def __getitem__(self, index: int) -> RecordedFrame:
        """Return frame ``index``, 0 to ``len - 1``."""
        ...


class LiveStream(Protocol):
    """Pictures as they come, from a thread of their own.

    Attributes:
        opened: how often the source was opened.
        repeated: pictures that equal the one before and were not passed on: a machine whose
            picture is frozen shows nothing new, and a new stamp would say that it does.
        dropped: pictures that nobody took in time.
    """

    opened: int
    repeated: int
    dropped: int

    @property
    def trouble(self) -> str:
        """What is wrong with the source, in words; '' when pictures come."""
        ...

    def take(self) -> tuple[Image, int] | None:
        """Return the oldest picture not taken yet and its time in ns, or None."""
        ...

    def close(self) -> None:
        """End the thread and let go of the source."""
        ...
