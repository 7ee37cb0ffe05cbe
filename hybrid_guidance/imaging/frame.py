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
