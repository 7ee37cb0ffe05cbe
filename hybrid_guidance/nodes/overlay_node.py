"""Draws needle, plan and uncertainty over both images, in 2-D and as planes in 3-D."""

from dataclasses import dataclass

import cv2
import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus
from geometry_msgs.msg import PointStamped, PoseArray, PoseWithCovarianceStamped
from sensor_msgs.msg import Image
from std_msgs.msg import Float64
from visualization_msgs.msg import MarkerArray

from hybrid_guidance import overlay
from hybrid_guidance.geometry.needle import NeedleEstimate
from hybrid_guidance.geometry.types import Transform
from hybrid_guidance.parameters import parameter
from hybrid_guidance.procedure import load_procedure
from hybrid_guidance.ros import markers, qos, tf
from hybrid_guidance.ros.bone import BoneContours, BoneParameters
from hybrid_guidance.ros.convert import (
    image_message,
    needle_from_message,
    point_array,
    stamp_ns,
)
from hybrid_guidance.ros.node import GuidanceNode, run
from hybrid_guidance.ros.probe import ProbeAdviser, SliceParameters
from hybrid_guidance.ros.view import View

HOLDS = {'fluoroscopy': True, 'ultrasound': False}
"""Whether a sensor's last image stays in use after its time (an X-ray, until the C-arm moves)."""


@dataclass(frozen=True)
class OverlayParameters(BoneParameters, SliceParameters):
    """Parameters of ``overlay_node``."""

    procedure: str = parameter('lumbar_facet_injection', fixed=True, meaning=(
        'name or YAML file of the procedure: length of the needle'))
    largest: int = parameter(768, low=64, high=4096, unit='px', meaning=(
        'longest side of an overlay; a larger image is shown smaller'))
    rate: float = parameter(5.0, low=0.5, high=30.0, unit='Hz', fixed=True,
                            meaning='of each overlay, at most')
    plane_rate: float = parameter(2.0, low=0.1, high=10.0, unit='Hz', fixed=True,
                                  meaning='of the image planes in 3-D')
    sigmas: float = parameter(2.0, low=0.5, high=6.0,
                              meaning='size of the ellipse of the tip, in deviations')
    stale: float = parameter(0.5, low=0.05, high=10.0, unit='s', meaning=(
        'older than this, an image or needle is shown in grey'))
    moved: float = parameter(0.002, low=0.0001, high=0.1, unit='m', meaning=(
        'a C-arm that moved further than this since its image makes it grey'))
    plane_depth: float = parameter(1.0, low=0.1, high=3.0, unit='m', meaning=(
        'distance of the X-ray plane from the source in 3-D'))


class OverlayNode(GuidanceNode[OverlayParameters]):
    """Publishes both overlays and ``guidance/markers``."""

    def __init__(self) -> None:
        super().__init__('overlay_node', OverlayParameters)
        self._length = load_procedure(self.parameters.procedure).needle.length
        self.listen_to_frames()
        self._bone, self._probe = BoneContours(self), ProbeAdviser(self)
        self._needle: tuple[NeedleEstimate, int] | None = None
        self._path: np.ndarray | None = None
        self._deviation: np.ndarray | None = None
        self._clearance: float | None = None
        self._disagreement = ''
        self._views = [View(sensor, holds) for sensor, holds in HOLDS.items()]
        self._outlets = {sensor: self.create_publisher(Image, f'{sensor}/overlay', qos.OVERLAY)
                            for sensor in HOLDS}
        self._markers = self.create_publisher(MarkerArray, 'guidance/markers', qos.STATE)
        for view in self._views:
            view.listen(self, is_watched=False)
        subscribe = self.create_subscription
        subscribe(PoseWithCovarianceStamped, 'needle/pose', self._on_needle, qos.OBSERVATION)
        subscribe(PoseArray, 'plan/waypoints', self._on_path, qos.STATE)
        subscribe(PointStamped, 'plan/deviation', self._on_deviation, qos.OBSERVATION)
        subscribe(Float64, 'plan/clearance', self._on_clearance, qos.OBSERVATION)
        subscribe(DiagnosticStatus, 'fusion/agreement', self._on_agreement, qos.OBSERVATION)
        self.create_timer(1.0 / self.parameters.rate, self._draw)
        self.create_timer(1.0 / self.parameters.plane_rate, self._show_in_space)

    def _on_needle(self, message: PoseWithCovarianceStamped) -> None:
        needle, stamp = needle_from_message(message), stamp_ns(message.header.stamp)
        if self._needle is None or stamp > self._needle[1] or self._needle[1] > self.now_ns():
            self._needle = (needle, stamp)

    def _on_path(self, message: PoseArray) -> None:
        self._path = np.array([point_array(pose.position) for pose in message.poses])

    def _on_deviation(self, message: PointStamped) -> None:
        self._deviation = point_array(message.point)

    def _on_clearance(self, message: Float64) -> None:
        self._clearance = message.data

    def _on_agreement(self, message: DiagnosticStatus) -> None:
        words = message.message if message.level == DiagnosticStatus.ERROR else ''
        self._disagreement = words.partition('. ')[0]

    def _draw(self) -> None:
        in_space = self._markers.get_subscription_count() > 0
        for view in self._views:
            outlet = self._outlets[view.sensor]
            is_watched = in_space or outlet.get_subscription_count() > 0 or (
                view.sensor == 'ultrasound' and self._probe.is_watched)
            view.listen(self, is_watched)
            if not is_watched:
                self.health.set(view.sensor, True)
                continue
            if view.frame is None:
                self.health.set(view.sensor, False, 'no image yet')
                continue
            try:
                sensor_T_patient, reasons = view.pose_and_doubts(self)
            except tf.FutureException:
                continue  # The pose of the newest image is still on its way.
            is_in_place = not reasons
            scene = self._scene(view, sensor_T_patient, reasons)
            pixels, projection = overlay.reduced(
                view.frame.pixels, view.frame.projection, self.parameters.largest)
            canvas = overlay.picture(pixels)
            self._bone.draw(canvas, view.sensor, projection, sensor_T_patient, is_in_place)
            view.canvas = overlay.draw(canvas, projection, sensor_T_patient, scene)
            self.health.set(view.sensor, not scene.reasons, '; '.join(scene.reasons))
            outlet.publish(
                image_message(view.canvas, view.frame_id, view.frame.stamp_ns))

    def _scene(self, view: View, sensor_T_patient: Transform | None,
               doubts: list[str]) -> overlay.Scene:
        now = self.now_ns()
        age = (now - view.frame.stamp_ns) * 1e-9
        lines = [f'{view.sensor}   {age:.1f} s old' if age > 1.0 else view.sensor]
        needle = self._needle[0] if self._needle else None
        if self._needle is None:
            doubts.append('needle not seen yet')
        elif (old := (now - self._needle[1]) * 1e-9) > self.parameters.stale:
            doubts.append(f'needle not seen for {old:.1f} s')
        if self._disagreement:
            doubts.append(self._disagreement)
        if needle is not None and self._deviation is not None:
            sigma = self.parameters.sigmas * float(
                np.sqrt(np.linalg.eigvalsh(needle.covariance[:3, :3])[-1]))
            lines.append(f'to target {np.linalg.norm(self._deviation) * 1e3:.1f} mm '
                         f'± {sigma * 1e3:.1f}')
        if self._clearance is not None:
            lines.append(f'clearance {self._clearance * 1e3:.1f} mm')
        if (view.sensor == 'ultrasound' and needle is not None and sensor_T_patient is not None
                and view.frame is not None and not doubts):
            words = self._probe.publish(view.frame, sensor_T_patient, needle)
            lines += [words] * bool(words)
        ends = (None, None) if self._path is None else self._path[[0, -1]]
        return overlay.Scene(needle, self._length, *ends, self.parameters.sigmas,
                             tuple(lines), tuple(doubts))

    def _show_in_space(self) -> None:
        if not self._markers.get_subscription_count():
            return
        shown = []
        for view in self._views:
            if view.canvas is not None and view.frame.projection.is_calibrated:
                height, width = view.frame.pixels.shape
                corners = view.frame.projection.corners(self.parameters.plane_depth)
                size = 512, 512 * height // width
                small = cv2.resize(view.canvas, size, interpolation=cv2.INTER_AREA)
                # Stamp zero: RViz places it by the newest pose of the sensor.
                shown += view.plane.show(small, corners, view.frame_id, 0)
        if self._needle is not None:
            needle, stamp = self._needle
            fresh = (self.now_ns() - stamp) * 1e-9 < self.parameters.stale
            shown += markers.needle('needle', needle.pose, 'patient', 0, self._length, (
                (1.0, 0.84, 0.0, 1.0) if fresh else (0.6, 0.6, 0.6, 0.6))).markers
            shown.append(markers.uncertainty(needle.tip, needle.covariance[:3, :3],
                                             self.parameters.sigmas, 'patient', 0))
        if shown:
            self._markers.publish(MarkerArray(markers=shown))


def main() -> None:
    """Run the node."""
    # Shorter than the time between images, of which only the latest is kept.
    run(OverlayNode, niceness=10, rest=0.025)


if __name__ == '__main__':
    main()
