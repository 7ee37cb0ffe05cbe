"""Fluoroscopy images: simulated X-ray pulses, live, or a DICOM recording."""

from dataclasses import dataclass

from std_msgs.msg import Float64
from std_srvs.srv import SetBool, Trigger

from hybrid_guidance.calibration.file import CalibrationError
from hybrid_guidance.fusion.frame_tree import FrameTreeError
from hybrid_guidance.geometry.projection import Projection
from hybrid_guidance.geometry.rigid import inverse
from hybrid_guidance.imaging.dicom import open_dicom
from hybrid_guidance.imaging.frame import Frame, Recording
from hybrid_guidance.imaging.image_folder import open_images
from hybrid_guidance.parameters import parameter
from hybrid_guidance.procedure import load_procedure
from hybrid_guidance.ros import qos
from hybrid_guidance.ros.calibration import load_beliefs, load_calibrations, load_delay
from hybrid_guidance.ros.frames import FramePublisher, Playback
from hybrid_guidance.ros.gantry import GantryParameters, GantryPoses
from hybrid_guidance.ros.ground_truth import GroundTruth, TrueTools
from hybrid_guidance.ros.health import ERROR
from hybrid_guidance.ros.live import LIVE, LiveImages, Project, Undistort
from hybrid_guidance.ros.node import GuidanceNode, run
from hybrid_guidance.simulation.anatomy import build_patient
from hybrid_guidance.simulation.render import xray_renderer
from hybrid_guidance.simulation.room import make_room
from hybrid_guidance.simulation.xray import XrayRenderer

SOURCES = ('simulated', 'dicom', 'images', *LIVE)


@dataclass(frozen=True)
class FluoroscopyParameters(GantryParameters):
    """Parameters of ``fluoroscopy_node``."""

    source: str = parameter('simulated', choices=SOURCES, fixed=True, meaning=(
        'where images come from'))
    file: str = parameter('', fixed=True, meaning=(
        'file, for the source dicom; folder or pattern of images; device, address or file of a '
        'video; host:port of an OpenIGTLink server'))
    rate: float = parameter(15.0, low=0.1, high=100.0, unit='Hz', fixed=True,
                            meaning='of a folder of images')
    loop: bool = parameter(True, fixed=True, meaning='whether a recording starts over at its end')
    procedure: str = parameter('lumbar_facet_injection', fixed=True, meaning=(
        'name or YAML file of the procedure: C-arm position and technique, simulated'))
    calibration_file: str = parameter('simulated', fixed=True, meaning=(
        'calibration: around it the simulated truth is drawn; of live images, the intrinsics'))
    seed: int = parameter(1, low=0, high=2**31 - 1, fixed=True,
                          meaning='of the simulated patient and noise')
    pulse_rate: float = parameter(15.0, low=0.5, high=30.0, unit='Hz',
                                  meaning='of the pedal, simulated')
    bend: float = parameter(0.0, low=-10.0, high=10.0, unit='1/m', fixed=True, meaning=(
        'curvature of the simulated needle in tissue: that of patient_node'))
    iodine: float = parameter(300.0, low=0.0, high=400.0, unit='kg/m³', fixed=True, meaning=(
        'in what patient_node injects: 300 is undiluted contrast medium, 0 is not seen'))


class FluoroscopyNode(GuidanceNode[FluoroscopyParameters]):
    """Publishes X-ray images with their projection, what they cost in dose, and the gantry."""

    def __init__(self) -> None:
        super().__init__('fluoroscopy_node', FluoroscopyParameters)
        self._live: LiveImages | None = None
        self._gantry = GantryPoses(self)
        self._publisher = FramePublisher(self, 'fluoroscopy', 'fluoroscopy_optical_frame',
                                         self._gantry.publish)
        self._kerma = self.create_publisher(Float64, 'fluoroscopy/air_kerma', qos.STATE)
        self._area = self.create_publisher(
            Float64, 'fluoroscopy/kerma_area_product', qos.STATE)
        self.create_service(Trigger, 'fluoroscopy/expose', self._on_expose)
        self.create_service(SetBool, 'fluoroscopy/pedal', self._on_pedal)
        self._pulses = 0
        self._timer = None
        self._renderer: XrayRenderer | None = None
        if self.parameters.source == 'simulated':
            self._simulate()
        elif self.parameters.source in LIVE:
            self._show_live()
        else:
            self._playback = Playback(
                self, self._publisher, self.parameters.file, self._open, self.parameters.loop,
                self._gantry.take)

    def _open(self, file: str) -> Recording:
        if self.parameters.source == 'dicom':
            return open_dicom(file, 'fluoroscopy', self.parameters.stated(),
                              self.parameters.pixel_pitch or None)
        project, undistort, _ = self._intrinsics()
        return open_images(file, self.parameters.rate, project, undistort)

    def _show_live(self) -> None:
        project, undistort, delay = self._intrinsics()
        self._live = LiveImages(
            self, self._publisher, self.parameters.source, self.parameters.file, self.parameters,
            delay, project, undistort)

    def _intrinsics(self) -> tuple[Project, Undistort, float]:
        """Return what the calibration file says: projection by size, distortion, delay."""
        name = self.parameters.calibration_file
        camera, delay = None, 0.0
        try:
            found = load_calibrations(name).get('fluoroscopy_optical_frame')
            camera, delay = found and found.camera, load_delay(name, 'fluoroscopy')
        except (CalibrationError, FileNotFoundError) as error:
            self.health.set('calibration', False, str(error), ERROR)

        def project(size: tuple[int, int]) -> Projection:
            if camera is None:
                return self.parameters.projection(size)
            return camera.projection() if camera.size == size else Projection.uncalibrated(size)
        return project, camera.undistorted if camera else lambda image: image, delay

    def destroy_node(self) -> None:
        """Let go of the live source first."""
        if self._live is not None:
            self._live.close()
        super().destroy_node()

    def _simulate(self) -> None:
        procedure = load_procedure(self.parameters.procedure)
        seed = self.parameters.seed
        beliefs = load_beliefs(self.parameters.calibration_file)
        self._room = make_room(procedure, beliefs, seed)
        self._tools = TrueTools(self, procedure, self.parameters.bend, seed,
                                self.parameters.iodine)
        self._renderer = xray_renderer(
            procedure, build_patient(procedure.region, seed, procedure.target), seed)
        # The anatomy of a standing C-arm is integrated before the first pulse, not in it.
        self._renderer.expected(inverse(self._room.world_T_patient) @ self._room.world_T_carm
                                @ self._room.carm_T_fluoroscopy)
        self._truth = GroundTruth(self, ('needle', 'patient', 'carm'))

    def _expose(self) -> None:
        assert self._renderer is not None
        stamp = self._truth.newest()
        patient_T_needle = self._truth.lookup('patient', 'needle', stamp)
        patient_T_carm = self._truth.lookup('patient', 'carm', stamp)
        pixels = self._renderer.render(patient_T_carm @ self._room.carm_T_fluoroscopy,
                                       self._tools.needles(patient_T_needle),
                                       self._tools.fluids)
        self._publisher.publish(Frame(pixels, stamp, self._renderer.projection))
        self._pulses += 1
        self._kerma.publish(Float64(data=self._pulses * self._renderer.air_kerma_per_pulse()))
        self._area.publish(Float64(
            data=self._pulses * self._renderer.kerma_area_product_per_pulse()))

    def _refuse(self) -> str:
        if self._renderer is None:
            return 'a recording cannot be exposed; use the source "simulated" or a real C-arm'
        try:
            self._truth.newest()
        except FrameTreeError as error:
            return f'the simulated patient is not there (patient_node): {error}'
        return ''

    def _on_expose(self, request: Trigger.Request,
                   response: Trigger.Response) -> Trigger.Response:
        response.message = self._refuse()
        if not response.message:
            self._expose()
            response.success, response.message = True, f'pulse {self._pulses}'
        return response

    def _on_pedal(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        response.message = self._refuse()
        if self._timer is not None:
            self.destroy_timer(self._timer)
            self._timer = None
        if request.data and not response.message:
            self._timer = self.create_timer(1.0 / self.parameters.pulse_rate, self._expose)
        response.success = not response.message or not request.data
        return response


def main() -> None:
    """Run the node."""
    run(FluoroscopyNode)


if __name__ == '__main__':
    main()
