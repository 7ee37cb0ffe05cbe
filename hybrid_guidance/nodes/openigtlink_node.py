"""Serves the guidance over OpenIGTLink: 3D Slicer shows needle, plan, frames and both images."""

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec

from geometry_msgs.msg import PoseArray, PoseWithCovarianceStamped
from rclpy.time import Time

from hybrid_guidance.imaging.frame import Frame
from hybrid_guidance.imaging.link_server import LinkServer
from hybrid_guidance.parameters import parameter
from hybrid_guidance.ros import qos, tf
from hybrid_guidance.ros.convert import (
    matrix_from_pose,
    matrix_from_transform,
    point_array,
    stamp_ns,
)
from hybrid_guidance.ros.health import ERROR
from hybrid_guidance.ros.node import GuidanceNode, run
from hybrid_guidance.ros.view import View

FRAMES = {'plan': 'PlanToRAS', 'ultrasound_probe': 'ProbeToRAS', 'carm': 'CarmToRAS',
          'ultrasound_image': 'UltrasoundToRAS', 'fluoroscopy_optical_frame': 'FluoroscopyToRAS'}
IMAGES = {'fluoroscopy': 'Fluoroscopy', 'ultrasound': 'Ultrasound'}


@dataclass(frozen=True)
class OpenigtlinkParameters:
    """Parameters of ``openigtlink_node``."""

    address: str = parameter('127.0.0.1', fixed=True, meaning=(
        'where to listen: 127.0.0.1 for this computer only, 0.0.0.0 for its network'))
    port: int = parameter(18944, low=1, high=65535, fixed=True, meaning='where to listen')
    rate: float = parameter(15.0, low=1.0, high=60.0, unit='Hz', fixed=True, meaning=(
        'of each image and frame, at most'))
    plane_depth: float = parameter(1.0, low=0.1, high=3.0, unit='m', meaning=(
        'distance of the X-ray plane from the source'))
    stale: float = parameter(0.5, low=0.05, high=10.0, unit='s', meaning=(
        'an older needle is sent as missing'))


class OpenigtlinkNode(GuidanceNode[OpenigtlinkParameters]):
    """Sends what is new to every client; everything in the patient's frame, in RAS and mm."""

    def __init__(self) -> None:
        super().__init__('openigtlink_node', OpenigtlinkParameters)
        self._views = tuple(View(sensor, holds=False) for sensor in IMAGES)
        self._unplaced: dict[str, Frame] = {}
        self._sent: dict[str, object] = {}
        self._needle: PoseWithCovarianceStamped | None = None
        self._plan: PoseArray | None = None
        self._server: LinkServer | None = None
        self._served = 0
        self.listen_to_frames()
        self.create_subscription(PoseWithCovarianceStamped, 'needle/pose', self._on_needle,
                                 qos.OBSERVATION)
        self.create_subscription(PoseArray, 'plan/waypoints', self._on_plan, qos.STATE)
        self._listen()

    def _listen(self) -> None:
        parameters = self.parameters
        try:
            if find_spec('pyigtl') is None:
                raise OSError('OpenIGTLink needs pyigtl: pip install pyigtl')
            self._igtl = import_module('hybrid_guidance.imaging.openigtlink')
            self._server = LinkServer(parameters.address, parameters.port)
        except OSError as error:
            self.health.set('server', False, (
                f'nobody can connect to {parameters.address}:{parameters.port}: {error}'), ERROR)
            return
        self.create_timer(1.0 / parameters.rate, self._send)

    def _on_needle(self, message: PoseWithCovarianceStamped) -> None:
        self._needle = message

    def _on_plan(self, message: PoseArray) -> None:
        self._plan = message
        self._sent.pop('Plan', None)

    def _send(self) -> None:
        assert self._server is not None
        watched = self._server.clients > 0
        if self._server.served != self._served:
            # Whoever comes late is told everything again.
            self._served = self._server.served
            self._sent.clear()
        for view in self._views:
            view.listen(self, is_watched=watched)
            if watched and view.frame is not None:
                self._send_image(view)
        if watched:
            self._send_frames()
            self._send_needle()
            self._send_plan()
        for key, number in (('clients', self._server.clients), ('sent', self._server.sent),
                            ('replaced', self._server.replaced)):
            self.health.value(key, number)

    def _send_image(self, view: View) -> None:
        # An image whose pose has not come yet waits for it; meanwhile newer ones are left out.
        frame, name = self._unplaced.pop(view.sensor, view.frame), IMAGES[view.sensor]
        self.health.set(view.sensor, frame.projection.is_calibrated, (
            'the image is uncalibrated (k[0] == 0) and has no place in space: not sent'))
        if frame.stamp_ns == self._sent.get(name) or not frame.projection.is_calibrated:
            return
        try:
            patient_T_sensor = self.lookup('patient', view.frame_id, frame.stamp_ns)
        except tf.FutureException:
            if self.now_ns() - frame.stamp_ns < 1e9 * self.parameters.stale:
                self._unplaced[view.sensor] = frame
            return
        except tf.TransformException as error:
            self.health.set(view.sensor, False, f'not sent: {error}')
            return
        self._sent[name] = frame.stamp_ns
        self._server.send(name, self._igtl.pack_image(
            name, frame.stamp_ns * 1e-9, frame.pixels, frame.projection, patient_T_sensor,
            self.parameters.plane_depth))

    def _send_frames(self) -> None:
        for frame, name in FRAMES.items():
            try:
                found = self.buffer.lookup_transform('patient', frame, Time())
            except tf.TransformException:
                continue
            matrix, stamp = matrix_from_transform(found.transform), stamp_ns(found.header.stamp)
            if self._sent.get(name) != (news := (stamp, matrix.tobytes())):
                self._sent[name] = news
                self._server.send(name, self._igtl.pack_pose(name, stamp * 1e-9, matrix))

    def _send_needle(self) -> None:
        if self._needle is None:
            return
        stamp = stamp_ns(self._needle.header.stamp)
        is_seen = self.now_ns() - stamp < 1e9 * self.parameters.stale
        if self._sent.get('NeedleToRAS') != (news := (stamp, is_seen)):
            self._sent['NeedleToRAS'] = news
            self._server.send('NeedleToRAS', self._igtl.pack_pose(
                'NeedleToRAS', stamp * 1e-9, matrix_from_pose(self._needle.pose.pose), is_seen))

    def _send_plan(self) -> None:
        if self._plan is None or not self._plan.poses or 'Plan' in self._sent:
            return
        self._sent['Plan'] = True
        ends = [point_array(self._plan.poses[end].position) for end in (0, -1)]
        self._server.send('Plan', self._igtl.pack_points(
            'Plan', stamp_ns(self._plan.header.stamp) * 1e-9, ('Entry', 'Target'), ends))

    def destroy_node(self) -> None:
        """Hang up first."""
        if self._server is not None:
            self._server.close()
        super().destroy_node()


def main() -> None:
    """Run the node."""
    run(OpenigtlinkNode, niceness=10)


if __name__ == '__main__':
    main()
