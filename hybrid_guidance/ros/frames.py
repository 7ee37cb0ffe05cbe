"""Publishing images: an image and its camera_info, always together."""

from collections.abc import Callable

from rclpy.node import Node
from sensor_msgs.msg import CameraInfo, Image

from hybrid_guidance.imaging.frame import Frame, RecordedFrame, Recording, SourceError
from hybrid_guidance.imaging.player import Player
from hybrid_guidance.ros import qos
from hybrid_guidance.ros.convert import camera_info_message, image_message
from hybrid_guidance.ros.health import ERROR
from hybrid_guidance.ros.node import GuidanceNode


class FramePublisher:
    """Publishes the frames of one sensor.

    Args:
        node: the publisher's node.
        sensor: ``fluoroscopy`` or ``ultrasound``.
        frame_id: of the sensor.
    """

    def __init__(self, node: Node, sensor: str, frame_id: str) -> None:
        self._frame_id = frame_id
        self._info = node.create_publisher(CameraInfo, f'{sensor}/camera_info', qos.CAMERA_INFO)
        self._image = node.create_publisher(Image, f'{sensor}/image_raw', qos.IMAGE)

    def publish(self, frame: Frame) -> None:
        """Publish one frame."""
        self._info.publish(camera_info_message(frame.projection, self._frame_id, frame.stamp_ns))
        self._image.publish(image_message(frame.pixels, self._frame_id, frame.stamp_ns))


class Playback:
    """Plays a recording at its own times, stamped with when each frame would have been taken.

    Each frame is decoded before it is due, so that decoding delays nothing. What cannot be read
    is said on the log and on /diagnostics, and the node stays up.

    Args:
        node: the node.
        publisher: where the frames go.
        open_recording: opens the file; may raise SourceError.
        loop: start over at the end.
        on_frame: called with (recorded frame, stamp in ns) before each image is published.
    """

    def __init__(self, node: GuidanceNode, publisher: FramePublisher,  # type: ignore[type-arg]
                 open_recording: Callable[[], Recording], loop: bool,
                 on_frame: Callable[[RecordedFrame, int], None] | None = None) -> None:
        self._node = node
        self._publisher = publisher
        self._on_frame = on_frame
        self._recording: Recording | None = None
        try:
            self._recording = open_recording()
            self._player = Player(self._recording, loop)
        except (SourceError, ValueError) as error:
            node.health.set('source', False, f'no source: {error}', ERROR)
            return
        for note in self._recording.notes:
            node.get_logger().info(note)
        if not self._recording.projection.is_calibrated:
            node.health.set('geometry', False, 'uncalibrated: ' + (
                '; '.join(self._recording.notes) or 'the file says nothing of its geometry'))
        self._ready: RecordedFrame | None = self._decode(0)
        self._start_ns = node.now_ns()
        self._timer = node.create_timer(0.001, self._tick)

    def _tick(self) -> None:
        elapsed = (self._node.now_ns() - self._start_ns) * 1e-9
        for count in self._player.due(elapsed):
            self._show(count)
        upcoming = self._player.next_time
        if upcoming is None:
            self._timer.cancel()
            self._node.health.set('source', False, 'the recording has ended')
            return
        elapsed = (self._node.now_ns() - self._start_ns) * 1e-9
        self._timer.timer_period_ns = max(int((upcoming - elapsed) * 1e9), 100_000)
        self._timer.reset()

    def _show(self, count: int) -> None:
        assert self._recording is not None
        stamp = self._start_ns + int(self._player.time_of(count) * 1e9)
        recorded = self._ready
        if recorded is not None:
            if self._on_frame is not None:
                self._on_frame(recorded, stamp)
            self._publisher.publish(Frame(recorded.pixels, stamp, self._recording.projection))
        self._ready = self._decode(count + 1)

    def _decode(self, count: int) -> RecordedFrame | None:
        index = self._player.locate(count)[1]
        assert self._recording is not None
        try:
            frame = self._recording[index]
        except SourceError as error:
            self._node.health.set('frame', False, str(error), ERROR)
            return None
        self._node.health.set('frame', True)
        return frame
