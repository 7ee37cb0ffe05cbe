"""Ultrasound images: simulated, live, DICOM, a tracked PLUS recording, or image files."""

from dataclasses import dataclass

from sensor_msgs.msg import Image

from hybrid_guidance.calibration.file import CalibrationError
from hybrid_guidance.fusion.frame_tree import FrameTreeError
from hybrid_guidance.geometry.projection import Projection
from hybrid_guidance.imaging.dicom import open_dicom
from hybrid_guidance.imaging.frame import Frame, Recording
from hybrid_guidance.imaging.geometry import ImageGeometry
from hybrid_guidance.imaging.image_folder import open_images
from hybrid_guidance.imaging.sequence import open_sequence
from hybrid_guidance.parameters import parameter
from hybrid_guidance.procedure import load_procedure
from hybrid_guidance.ros import qos
from hybrid_guidance.ros.calibration import load_beliefs, load_calibrations, load_delay
from hybrid_guidance.ros.convert import image_message
from hybrid_guidance.ros.frames import FramePublisher, Playback, RecordedPoses
from hybrid_guidance.ros.ground_truth import GroundTruth, TrueTools
from hybrid_guidance.ros.health import ERROR
from hybrid_guidance.ros.live import LIVE, LiveImages, LiveParameters
from hybrid_guidance.ros.node import GuidanceNode, run
from hybrid_guidance.simulation.anatomy import build_patient
from hybrid_guidance.simulation.render import ultrasound_renderer
from hybrid_guidance.simulation.room import make_room

SOURCES = ('simulated', 'dicom', 'sequence', 'images', *LIVE)
_IMPORT = 'give the calibration of this recording, made with "hybrid-guidance import-plus"'


@dataclass(frozen=True)
class UltrasoundParameters(LiveParameters):
    """Parameters of ``ultrasound_node``."""

    source: str = parameter('simulated', choices=SOURCES, fixed=True, meaning=(
        'where images come from'))
    file: str = parameter('', fixed=True, meaning=(
        'file, for the sources dicom and sequence; folder or pattern of images; device, address or '
        'file of a video; host:port of an OpenIGTLink server'))
    loop: bool = parameter(True, fixed=True, meaning='whether a recording starts over at its end')
    sequence_frames: str = parameter(
        'Tracker=world Probe=ultrasound_probe', fixed=True, meaning=(
            'names in a sequence to tf frames; others become snake_case'))
    link_frames: str = parameter(
        'Tracker=world Probe=ultrasound_probe RAS=patient', fixed=True, meaning=(
            'names of an OpenIGTLink server to tf frames: Tracker=world for the halves of '
            'ProbeToTracker, Needle=world:needle for a name without halves; empty: no poses'))
    procedure: str = parameter('lumbar_facet_injection', fixed=True, meaning=(
        'name or YAML file of the procedure: probe and its position, simulated'))
    calibration_file: str = parameter('simulated', fixed=True, meaning=(
        'calibration: around it the simulated truth is drawn; for a sequence, pixel spacing'))
    seed: int = parameter(1, low=0, high=2**31 - 1, fixed=True,
                          meaning='of the simulated patient and noise')
    rate: float = parameter(30.0, low=1.0, high=100.0, unit='Hz', fixed=True,
                            meaning='of simulated images, and of a folder of images')
    machine_delay: float = parameter(0.0, low=0.0, high=1.0, unit='s', fixed=True, meaning=(
        'how old the echoes of a simulated image are at its stamp: 0.15 is typical'))
    pulsation: float = parameter(0.0, low=0.0, high=0.3, fixed=True, meaning=(
        'how far simulated arteries move with the heart, of their radius: 0.05 is usual'))
    doppler: str = parameter('none', choices=('none', 'colour', 'power'), fixed=True, meaning=(
        'whether ultrasound/doppler shows simulated blood in colour: colour is velocity'))
    bend: float = parameter(0.0, low=-10.0, high=10.0, unit='1/m', fixed=True, meaning=(
        'curvature of the simulated needle in tissue: that of patient_node'))


class UltrasoundNode(GuidanceNode[UltrasoundParameters]):
    """Publishes ultrasound images with their projection, and a recording's poses on /tf."""

    def __init__(self) -> None:
        super().__init__('ultrasound_node', UltrasoundParameters)
        self._publisher = FramePublisher(self, 'ultrasound', 'ultrasound_image')
        self._doppler = self.create_publisher(Image, 'ultrasound/doppler', qos.IMAGE)
        parameters = self.parameters
        if parameters.source == 'simulated':
            self._simulate()
            return
        if parameters.source in LIVE:
            self._show_live()
            return
        if parameters.source == 'sequence':
            self._poses = RecordedPoses(self, parameters.sequence_frames)
        self._playback = Playback(self, self._publisher, parameters.file, self._open,
                                  parameters.loop, getattr(self, '_poses', None))

    def _show_live(self) -> None:
        geometry, file = self._geometry(), self.parameters.calibration_file
        self._live = LiveImages(
            self, self._publisher, self.parameters.source, self.parameters.file, self.parameters,
            load_delay(file, 'ultrasound') if geometry else 0.0,
            geometry.projection if geometry else Projection.uncalibrated)

    def destroy_node(self) -> None:
        """Let go of the live source first."""
        if self.parameters.source in LIVE:
            self._live.close()
        super().destroy_node()

    def _simulate(self) -> None:
        procedure, seed = load_procedure(self.parameters.procedure), self.parameters.seed
        beliefs = load_beliefs(self.parameters.calibration_file)
        self._room = make_room(procedure, beliefs, seed)
        self._tools = TrueTools(self, procedure, self.parameters.bend, seed)
        self._renderer = ultrasound_renderer(
            procedure, build_patient(procedure.region, seed, procedure.target), seed,
            self.parameters.pulsation)
        self._truth = GroundTruth(self, ('needle', 'patient', 'ultrasound_probe'))
        self.create_timer(1.0 / self.parameters.rate, self._scan)

    def _scan(self) -> None:
        try:
            stamp = self._truth.newest()
            seen = stamp - int(self.parameters.machine_delay * 1e9)
            patient_T_needle = self._truth.lookup('patient', 'needle', seen)
            patient_T_probe = self._truth.lookup('patient', 'ultrasound_probe', seen)
        except FrameTreeError as error:
            self.health.set('source', False, f'no simulated patient (patient_node): {error}')
            return
        self.health.set('source', True)
        pose = patient_T_probe @ self._room.probe_T_ultrasound
        pixels = self._renderer.render(pose, self._tools.needles(patient_T_needle), seen * 1e-9,
                                       self._tools.fluids)
        self._publisher.publish(Frame(pixels, stamp, self._renderer.projection))
        if self.parameters.doppler != 'none':
            coloured = self._renderer.doppler(pixels, pose, seen * 1e-9, self.parameters.doppler)
            self._doppler.publish(image_message(coloured[..., ::-1], 'ultrasound_image', stamp))

    def _open(self, file: str) -> Recording:
        if self.parameters.source == 'dicom':
            return open_dicom(file, 'ultrasound')
        geometry = self._geometry()
        if self.parameters.source == 'images':
            return open_images(file, self.parameters.rate, (
                geometry.projection if geometry else Projection.uncalibrated))
        recording = open_sequence(file, geometry)
        self._poses.choose(recording.pairs)
        return recording

    def _geometry(self) -> ImageGeometry | None:
        """Return the image plane of the calibration: a sequence has no scale of its own."""
        name = self.parameters.calibration_file
        try:
            found = load_calibrations(name).get('ultrasound_image')
            if found is None or found.image is None:
                raise CalibrationError(f'{name}: has no {"image" if found else "calibration"} of '
                                       f'kind ultrasound-spatial; {_IMPORT}')
            if found.method == 'simulated':
                raise CalibrationError(f'{name}: is of the simulated probe; {_IMPORT}')
        except (CalibrationError, FileNotFoundError) as error:
            self.health.set('calibration', False, f'no pixel spacing: {error}', ERROR)
            return None
        return found.image


def main() -> None:
    """Run the node."""
    run(UltrasoundNode)


if __name__ == '__main__':
    main()
