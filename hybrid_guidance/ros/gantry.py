"""Where the C-arm stands by its own angles, in place of a tracker: ``gantry_frame`` → ``carm``."""

import re
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
from rclpy.qos import DurabilityPolicy, QoSProfile
from tf2_msgs.msg import TFMessage

from hybrid_guidance.geometry.projection import Projection
from hybrid_guidance.geometry.types import Transform
from hybrid_guidance.imaging.dicom import CARM, ISOCENTRE, Gantry
from hybrid_guidance.imaging.frame import RecordedFrame
from hybrid_guidance.parameters import ParameterError, parameter
from hybrid_guidance.ros import tf
from hybrid_guidance.ros.convert import stamp_ns, transform_message
from hybrid_guidance.ros.health import ERROR
from hybrid_guidance.ros.live import LiveParameters
from hybrid_guidance.ros.node import GuidanceNode

TRACKED, FILE, CONSOLE = 'tracked', 'file', 'console'
_KEPT = 256


@dataclass(frozen=True)
class GantryParameters(LiveParameters):
    """Parameters of a node that may know how the C-arm stands."""

    gantry: str = parameter(TRACKED, choices=(TRACKED, FILE, CONSOLE), fixed=True, meaning=(
        'who says where carm is: tracked: another node; file: the angles of the DICOM file; '
        'console: the angles below'))
    gantry_frame: str = parameter('world', fixed=True, meaning=(
        "parent of carm then: its origin at the C-arm's isocentre, its axes DICOM's (x to the "
        "patient's left, y to the back, z to the head)"))
    primary_angle_deg: float = parameter(0.0, low=-180.0, high=180.0, unit='deg', meaning=(
        'console: LAO positive'))
    secondary_angle_deg: float = parameter(0.0, low=-89.0, high=89.0, unit='deg', meaning=(
        'console: cranial positive'))
    source_to_isocentre: float = parameter(0.0, low=0.0, high=3.0, unit='m', fixed=True, meaning=(
        'of the C-arm; 0: as the DICOM file says'))
    source_to_detector: float = parameter(0.0, low=0.0, high=3.0, unit='m', fixed=True, meaning=(
        'of the C-arm; 0: as the DICOM file or the calibration says'))
    pixel_pitch: float = parameter(0.0, low=0.0, high=0.005, unit='m', fixed=True, meaning=(
        'between pixels at the detector; 0: as the DICOM file or the calibration says'))

    def stated(self) -> Gantry:
        """Return what these parameters say of the C-arm."""
        angles = np.deg2rad([self.primary_angle_deg, self.secondary_angle_deg]).tolist()
        return Gantry(self.source_to_detector or None, self.source_to_isocentre or None,
                      *(angles if self.gantry == CONSOLE else (None, None)))

    def projection(self, size: tuple[int, int]) -> Projection:
        """Return the pinhole of images of (width, height), uncalibrated where it is not said."""
        if not self.source_to_detector or not self.pixel_pitch:
            return Projection.uncalibrated(size)
        focal = self.source_to_detector / self.pixel_pitch
        return Projection.perspective((focal, focal), ((size[0] - 1) / 2.0, (size[1] - 1) / 2.0),
                                      size)


class GantryPoses:
    """Publishes ``carm`` at the stamp of each image, unless somebody else does.

    ``carm`` is where the angles and the distance put the source, in the axes of the image; what
    is between that and ``fluoroscopy_optical_frame`` the calibration says.

    Args:
        node: the node; its parameters are ``GantryParameters`` with ``source``.

    Raises:
        ParameterError: parameters ask for two publishers of ``carm``, or for what is not there.
    """

    def __init__(self, node: GuidanceNode[Any]) -> None:
        self._node = node
        self._mode = node.parameters.gantry
        self._recorded: Transform | None = None
        self._missing = ''
        self._sent: deque[int] = deque(maxlen=_KEPT)
        self._other = ''
        if self._mode == TRACKED:
            return
        _refuse(node.parameters)
        self._broadcaster = tf.TransformBroadcaster(node)
        node.create_subscription(TFMessage, '/tf', self._listen, QoSProfile(depth=100))
        node.create_subscription(TFMessage, '/tf_static', self._listen, QoSProfile(
            depth=100, durability=DurabilityPolicy.TRANSIENT_LOCAL))

    def take(self, recorded: RecordedFrame, _: int) -> None:
        """Remember how the C-arm stood at the frame that comes next."""
        self._recorded = recorded.transforms.get((ISOCENTRE, CARM))

    def publish(self, stamp: int) -> None:
        """Publish the pose for the image of this stamp (ns), or say why not."""
        if self._mode == TRACKED:
            return
        pose, why = self._pose()
        self._node.health.set('gantry', pose is not None and not self._other,
                              self._other or why, ERROR)
        if pose is not None and not self._other:
            self._sent.append(stamp)
            self._broadcaster.sendTransform([transform_message(
                self._node.parameters.gantry_frame, CARM, stamp, pose)])

    def _pose(self) -> tuple[Transform | None, str]:
        stated = self._node.parameters.stated()
        if self._mode == CONSOLE:
            return stated.pose(), f'{stated.missing()} is not given: set source_to_isocentre'
        return self._recorded, (
            'the file does not say how the C-arm stood at this image ("hybrid-guidance inspect" '
            'says what is missing): set source_to_isocentre, or gantry to console with the angles')

    def _listen(self, message: TFMessage) -> None:
        for item in message.transforms:
            if item.child_frame_id == CARM and stamp_ns(item.header.stamp) not in self._sent:
                self._other = (
                    f'somebody else publishes {item.header.frame_id} -> {CARM}: the angles of the '
                    'C-arm are not published any more; end the other and start this node again, '
                    f'or set gantry to {TRACKED}')


def _refuse(parameters: Any) -> None:
    """Refuse what cannot be, or what would make two publishers of ``carm``."""
    mode, source = parameters.gantry, parameters.source
    if source == 'simulated':
        raise ParameterError(f'gantry: {mode}, but patient_node publishes {CARM} of the simulated '
                             f'C-arm; set it to {TRACKED}')
    if mode == FILE and source != 'dicom':
        raise ParameterError(f'gantry: {FILE}, but the source {source} has no angles; set it to '
                             f'{CONSOLE} and give the angles, or to {TRACKED}')
    if any(re.split('[=:]', word)[-1] == CARM for word in parameters.link_frames.split()):
        raise ParameterError(f'gantry: {mode}, but link_frames makes {CARM} of a pose of the '
                             f'server; set gantry to {TRACKED}, or take {CARM} out of it')
