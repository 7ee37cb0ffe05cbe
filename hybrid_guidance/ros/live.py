"""Publishing live pictures as the images of one sensor, wherever they come from."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from hybrid_guidance.calibration.recorded import DELAY
from hybrid_guidance.geometry.projection import Projection
from hybrid_guidance.geometry.types import Image
from hybrid_guidance.imaging.frame import Frame, LiveStream, SourceError
from hybrid_guidance.imaging.video import VideoFormat, VideoStream, parse_crop
from hybrid_guidance.parameters import parameter
from hybrid_guidance.ros.frames import FramePublisher
from hybrid_guidance.ros.health import ERROR
from hybrid_guidance.ros.node import GuidanceNode

if TYPE_CHECKING:
    from hybrid_guidance.ros.link import LinkReport

Project = Callable[[tuple[int, int]], Projection]
"""Takes the (width, height) of images to their projection."""

Undistort = Callable[[Image], Image]
"""Makes an image one that the projection is true for."""

LIVE = ('video', 'openigtlink')
"""Sources that are live."""


@dataclass(frozen=True)
class LiveParameters:
    """Parameters of a node whose images can come live."""

    crop: str = parameter('', fixed=True, meaning=(
        'part of a live picture that is the image: left top width height, px; empty: all'))
    mirrored: bool = parameter(False, fixed=True, meaning=(
        'whether a live picture has left and right swapped'))
    interlaced: bool = parameter(False, fixed=True, meaning=(
        'whether even and odd rows of a live picture are of different times'))
    device_delay: float = parameter(0.0, low=0.0, high=2.0, unit='s', fixed=True, meaning=(
        'by how much a live picture is stamped later than it was taken; 0: as the calibration '
        'file says'))
    link_device: str = parameter('', fixed=True, meaning=(
        'device whose images to take from an OpenIGTLink server; empty: the first that sends one'))
    link_frames: str = parameter('', fixed=True, meaning=(
        'names of an OpenIGTLink server to tf frames: Tracker=world for the halves of '
        'ProbeToTracker, Needle=world:needle for a name without halves; empty: no poses'))


class LiveImages:
    """Publishes each new picture, stamped with when it was taken, and says when there is none.

    Args:
        node: the node.
        publisher: where the images go.
        source: one of ``LIVE``.
        name: device number or path, URL, or file of a video; host:port of an OpenIGTLink server.
        parameters: how a picture becomes an image, and how late it comes.
        delay_s: of the calibration file.
        geometry: takes the (width, height) of images to their projection.
        undistort: makes an image one that the projection is true for.
    """

    def __init__(self, node: GuidanceNode[Any], publisher: FramePublisher, source: str, name: str,
                 parameters: LiveParameters, delay_s: float,
                 geometry: Project, undistort: Undistort = lambda image: image) -> None:
        self._node, self._publisher = node, publisher
        self._geometry, self._undistort = geometry, undistort
        self._delay_ns = round((parameters.device_delay or delay_s) * 1e9)
        self._projection: Projection | None = None
        self._published = 0
        self._stream: LiveStream | None = None
        self._report: LinkReport | None = None
        try:
            self._format = VideoFormat(parse_crop(parameters.crop), parameters.mirrored,
                                       parameters.interlaced)
            self._wake = node.create_guard_condition(self._publish)
            self._stream = self._open(source, name, parameters)
        except SourceError as error:
            node.health.set('source', False, f'no source: {error}', ERROR)
            return
        node.create_timer(0.2, self._watch)

    def _open(self, source: str, name: str, parameters: LiveParameters) -> LiveStream:
        if not name:
            raise SourceError('the parameter "file" is empty; name a device, an address or '
                              'a file')
        if source == 'video':
            return VideoStream(name, self._node.now_ns, self._wake.trigger)
        # Only this source needs it, and no distribution of ROS 2 has a package of it.
        if find_spec('pyigtl') is None:
            raise SourceError('OpenIGTLink needs pyigtl: pip install pyigtl')
        from hybrid_guidance.imaging.link_client import LinkStream
        from hybrid_guidance.ros.link import LinkNames, LinkReport
        # First what can be refused: a stream has a thread that somebody must end.
        names = LinkNames.parse(parameters.link_frames)
        stream = LinkStream(name, self._node.now_ns, self._wake.trigger, parameters.link_device)
        self._report = LinkReport(self._node, stream, names)
        return stream

    def _publish(self) -> None:
        if self._report is not None:
            # Poses first: an image waits for the pose at its time.
            self._report.publish_poses()
        while self._stream is not None and (taken := self._stream.take()) is not None:
            picture, stamp = taken
            try:
                pixels = self._format.apply(picture)
            except SourceError as error:
                self._node.health.set('picture', False, str(error), ERROR)
                return
            self._node.health.set('picture', True)
            projection = self._project(pixels)
            if projection.is_calibrated:
                pixels = self._undistort(pixels)
            self._publisher.publish(Frame(pixels, stamp - self._delay_ns, projection))
            self._published += 1

    def _project(self, pixels: Image) -> Projection:
        size = pixels.shape[1], pixels.shape[0]
        known = self._projection
        if known is None or (known.width, known.height) != size:
            known = self._projection = self._geometry(size)
            self._node.health.set('geometry', known.is_calibrated, (
                f'uncalibrated: the calibration file says nothing of images of {size[0]} x '
                f'{size[1]}; "hybrid-guidance calibrate" finds it'))
        return known

    def _watch(self) -> None:
        health, stream = self._node.health, self._stream
        assert stream is not None
        health.set('source', not stream.trouble, f'no source: {stream.trouble}')
        # A recording for calibration must know it: what is left over is not the whole delay.
        health.value(DELAY, self._delay_ns / 1e9)
        for key, number in (('frames', self._published), ('dropped', stream.dropped),
                            ('repeated', stream.repeated), ('opened', stream.opened)):
            health.value(key, number)
        if self._report is not None:
            self._report.say()

    def close(self) -> None:
        """Let go of the source."""
        if self._stream is not None:
            self._stream.close()
