"""One sensor's latest image, for whoever draws over it."""

from dataclasses import dataclass, field
from typing import Any

from hybrid_guidance.geometry.types import Image
from hybrid_guidance.imaging.frame import Frame
from hybrid_guidance.ros import markers
from hybrid_guidance.ros.node import GuidanceNode


@dataclass
class View:
    """The image, what was drawn over it, and the subscriptions that bring it.

    Attributes:
        sensor: ``fluoroscopy`` or ``ultrasound``.
        holds: whether the last image is still shown when no new one comes; it is taken even
            while nobody watches, because the next may not come for long.
    """

    sensor: str
    holds: bool
    frame: Frame | None = None
    frame_id: str = ''
    canvas: Image | None = None
    plane: markers.ImagePlane = field(init=False)
    subscriptions: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        self.plane = markers.ImagePlane(f'{self.sensor}_plane')

    def keep(self, frame: Frame, frame_id: str) -> None:
        """Take the newest image."""
        self.frame, self.frame_id = frame, frame_id

    def listen(self, node: GuidanceNode[Any], is_watched: bool) -> None:
        """Take images while somebody watches: each costs a processor as much as drawing it."""
        wanted = is_watched or self.holds
        if wanted and not self.subscriptions:
            self.subscriptions = node.subscribe_frames(self.sensor, self.keep)
        elif not wanted and self.subscriptions:
            for subscription in self.subscriptions:
                node.destroy_subscription(subscription)
            self.subscriptions, self.frame = (), None
