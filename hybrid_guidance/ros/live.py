"""Publishing live pictures as the images of one sensor."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hybrid_guidance.geometry.projection import Projection
from hybrid_guidance.geometry.types import Image
from hybrid_guidance.imaging.frame import Frame, SourceError
from hybrid_guidance.imaging.video import VideoFormat, VideoStream, parse_crop
from hybrid_guidance.parameters import parameter
from hybrid_guidance.ros.frames import FramePublisher
from hybrid_guidance.ros.health import ERROR
from hybrid_guidance.ros.node import GuidanceNode


@dataclass(frozen=True)
class VideoParameters:
    """Parameters of a node whose images can come as live video."""

    crop: str = parameter('', fixed=True, meaning=(
        'part of a video picture that is the image: left top width height, px; empty: all'))
    mirrored: bool = parameter(False, fixed=True, meaning=(
        'whether a video picture has left and right swapped'))
    interlaced: bool = parameter(False, fixed=True, meaning=(
        'whether even and odd rows of a video picture are of different times'))
    device_delay: float = parameter(0.0, low=0.0, high=2.0, unit='s', fixed=True, meaning=(
        'by how much a video picture arrives after it was taken; 0: as the calibration file says'))


class LiveVideo:
    """Publishes each new picture, stamped with when it was taken, and says when there is none.

    Args:
        node: the node.
        publisher: where the images go.
        name: device number or path, URL, or file.
        parameters: how a picture becomes an image, and how late it comes.
        delay_s: of the calibration file.
        geometry: takes the (width, height) of images to their projection.
        undistort: makes an image one that the projection is true for.
    """

    def __init__(self, node: GuidanceNode[Any], publisher: FramePublisher, name: str,
                 parameters: VideoParameters, delay_s: float,
                 geometry: Callable[[tuple[int, int]], Projection],
                 undistort: Callable[[Image], Image] = lambda image: image) -> None:
        self._node, self._publisher = node, publisher
        self._geometry, self._undistort = geometry, undistort
        self._delay_ns = round((parameters.device_delay or delay_s) * 1e9)
        self._projection: Projection | None = None
        self._published = 0
        self._stream: VideoStream | None = None
        try:
            if not name:
                raise SourceError('the parameter "file" is empty; name a device, an address or '
                                  'a file')
            self._format = VideoFormat(parse_crop(parameters.crop), parameters.mirrored,
                                       parameters.interlaced)
        except SourceError as error:
            node.health.set('source', False, f'no source: {error}', ERROR)
            return
        self._wake = node.create_guard_condition(self._publish)
        self._stream = VideoStream(name, node.now_ns, self._wake.trigger)
        node.create_timer(0.2, self._watch)

    def _publish(self) -> None:
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
        for key, number in (('frames', self._published), ('dropped', stream.dropped),
                            ('repeated', stream.repeated), ('opened', stream.opened)):
            health.value(key, number)

    def close(self) -> None:
        """Let go of the source."""
        if self._stream is not None:
            self._stream.close()
