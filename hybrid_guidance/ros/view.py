"""One sensor's latest image, for whoever draws over it."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hybrid_guidance.geometry.rigid import rotation_angle
from hybrid_guidance.geometry.types import Image, Transform
from hybrid_guidance.imaging.frame import Frame
from hybrid_guidance.ros import markers, tf
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

    def pose_and_doubts(self, node: GuidanceNode[Any]) -> tuple[Transform | None, list[str]]:
        """Return where the patient is in the image, and why what is drawn may be wrong.

        Args:
            node: follows tf; has the parameters ``stale`` and ``moved``.

        Raises:
            tf.FutureException: the pose of the newest image is still on its way.
        """
        assert self.frame is not None
        age = (node.now_ns() - self.frame.stamp_ns) * 1e-9
        if not self.frame.projection.is_calibrated:
            return None, ['image not calibrated: nothing can be drawn in it']
        doubts = []
        if age > node.parameters.stale and not self.holds:
            doubts.append(f'{self.sensor} image is {age:.1f} s old')
        try:
            then = node.lookup(self.frame_id, 'patient', self.frame.stamp_ns)
        except tf.FutureException as error:
            if age < node.parameters.stale:
                raise
            return None, [*doubts, f'pose of the image unknown: {error}']
        except tf.PastException:
            # An X-ray outlives the history of frames; it may stay while the C-arm stays.
            return None, [*doubts, f'X-ray is {age:.0f} s old: expose again']
        except tf.TransformException as error:
            return None, [*doubts, f'pose of the image unknown: {error}']
        now = node.lookup(self.frame_id, 'patient', 0)
        shift = float(np.linalg.norm(then[:3, 3] - now[:3, 3]))
        if self.holds and max(shift, rotation_angle(then[:3, :3] @ now[:3, :3].T)
                                      ) > node.parameters.moved:
            doubts.append('C-arm has moved since this image: expose again')
        return then, doubts
