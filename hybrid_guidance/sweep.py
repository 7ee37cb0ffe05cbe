"""Sweeps of tracked ultrasound over bone: out of a recording, or simulated."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hybrid_guidance.calibration.file import Calibration, CalibrationError
from hybrid_guidance.calibration.recorded import read_tf, track_of
from hybrid_guidance.calibration.track import Track
from hybrid_guidance.detection.bone_surface import BoneSurfaceDetector
from hybrid_guidance.detection.ultrasound import Beams, sector_mask
from hybrid_guidance.geometry.rigid import perturbed
from hybrid_guidance.geometry.types import Image
from hybrid_guidance.imaging.frame import Frame
from hybrid_guidance.imaging.sequence import open_sequence
from hybrid_guidance.procedure import Procedure
from hybrid_guidance.registration.surface import Glimpse
from hybrid_guidance.simulation.anatomy import Patient
from hybrid_guidance.simulation.motion import probe_sweep
from hybrid_guidance.simulation.render import ultrasound_renderer

# Images looked at, metres and radians of motion after the last one: bone between them is alike.
_STEP = 0.001
_TURN = 0.02


@dataclass(frozen=True)
class Names:
    """What the frames of a tracker are called in a recording.

    Attributes:
        fixed: the frame to register in.
        probe: the marker on the probe.
    """

    fixed: str = 'world'
    probe: str = 'ultrasound_probe'


def read_sweep(path: Path, probe: Calibration, delay: float, names: Names) -> list[Glimpse]:
    """Return the bone surface in the images of a recording, in the fixed frame.

    Args:
        path: folder of a rosbag2 recording or its .mcap file; else a PLUS/IGSIO sequence.
        probe: ``ultrasound_probe_T_ultrasound_image``; its image plane is that of a sequence.
        delay: seconds by which a sequence's images are stamped late.
        names: of the frames in the recording.

    Raises:
        CalibrationError: no images, no poses, or nothing that says how large a pixel is.
        SourceError: not a sequence.
    """
    if path.is_dir() or path.suffix == '.mcap':
        # The graph has taken the delay off already: a stamp is the time of acquisition.
        frames, track = _bag_frames(path), read_tf(path, names.fixed, names.probe)
    else:
        frames, track = _sequence_frames(path, probe, delay, names)
    look = _Look()
    glimpses, seen = [], 0
    for frame in frames:
        seen += 1
        poses, inside = track.at(np.array([frame.stamp_ns * 1e-9]))
        if inside[0] and look.is_due(poses[0]):
            glimpses.append(look.at(frame, poses[0] @ probe.transform))
    if not glimpses:
        raise CalibrationError(f'{path}: {seen} ultrasound images, none while {names.probe} was '
                               f'tracked in {names.fixed}; record both together')
    return glimpses


class _Look:
    """Finds bone in the images of a sweep, where the probe has moved on."""

    def __init__(self) -> None:
        self._detect = BoneSurfaceDetector()
        self._last: Any = None
        self._radius: float | None = None

    def is_due(self, pose: Any) -> bool:
        if self._last is not None:
            change = np.linalg.norm(pose[:3, 3] - self._last[:3, 3])
            turn = np.linalg.norm(pose[:3, :3] - self._last[:3, :3]) / np.sqrt(2.0)
            if change < _STEP and turn < _TURN:
                return False
        self._last = pose
        return True

    def at(self, frame: Frame, fixed_T_image: Any) -> Glimpse:
        if self._radius is None:
            self._radius = face_radius(frame)
        pixels, confidence = self._detect(frame)
        return Glimpse.seen(pixels, confidence, frame.projection, fixed_T_image, self._radius)


def face_radius(frame: Frame) -> float:
    """Return the radius of the transducer's face in metres, by the sides of the sector.

    Infinite where beams are parallel, and where the image is not calibrated.
    """
    apex = Beams.of(sector_mask(frame.pixels)).apex
    if apex is None or not frame.projection.is_calibrated:
        return float(np.inf)
    return float(max(-frame.projection.back_project(apex)[1], 1e-3))


def _sequence_frames(path: Path, probe: Calibration, delay: float,
                     names: Names) -> tuple[Iterator[Frame], Track]:
    if probe.image is None:
        raise CalibrationError('the calibration of the probe has no "image": nothing says how '
                               'large a pixel of the sequence is')
    recording = open_sequence(path, probe.image)

    def frames() -> Iterator[Frame]:
        for index in range(len(recording)):
            frame = recording[index]
            stamp = recording.start_time + frame.time - delay
            yield Frame(frame.pixels, round(stamp * 1e9), recording.projection)
    return frames(), track_of(recording, path, names.fixed, names.probe)


def _bag_frames(path: Path) -> Iterator[Frame]:
    """Yield the ultrasound images of a bag with the geometry that came with each."""
    from rosbags.highlevel import AnyReader, AnyReaderError
    from rosbags.typesys import Stores, get_typestore

    from hybrid_guidance.ros.convert import MessageError, frame_from_messages, stamp_ns
    folder = path.parent if path.suffix == '.mcap' else path
    ends = ('/ultrasound/camera_info', '/ultrasound/image_raw')
    infos: dict[int, Any] = {}
    images: dict[int, Any] = {}
    try:
        with AnyReader([folder], default_typestore=get_typestore(Stores.LATEST)) as reader:
            topics = [item for item in reader.connections if item.topic.endswith(ends)]
            for connection, _, data in reader.messages(connections=topics):
                message: Any = reader.deserialize(data, connection.msgtype)
                stamp = stamp_ns(message.header.stamp)
                (infos if connection.topic.endswith(ends[0]) else images)[stamp] = message
                if stamp in infos and stamp in images:
                    yield frame_from_messages(images.pop(stamp), infos.pop(stamp))
    except (AnyReaderError, OSError, ValueError, KeyError, MessageError) as error:
        raise CalibrationError(f'{path}: is not a rosbag2 recording that can be read ({error}); '
                               'name the folder that "ros2 bag record" made') from error


def simulated_sweep(procedure: Procedure, patient: Patient, seed: int, seconds: float = 18.0,
                    every: float = 0.3, reach: float = 0.035) -> list[Glimpse]:
    """Return a sweep over a simulated patient, in ``patient``, with the errors of a tracker.

    Each pose errs by 0.2 mm and 0.1 degrees, all together by 0.3 mm and 0.2 degrees (deviation of
    each axis), as a probe's calibration does.
    """
    random = np.random.default_rng([seed, 0x5b])
    renderer, look = ultrasound_renderer(procedure, patient, seed), _Look()
    own = np.array([2e-4] * 3 + [np.radians(0.1)] * 3)
    wrong = perturbed(np.eye(4), np.array([3e-4] * 3 + [np.radians(0.2)] * 3)
                      * random.normal(size=6))
    glimpses = []
    for time in np.arange(0.0, seconds, every):
        pose = procedure.patient_T_ultrasound() @ probe_sweep(float(time), reach)
        image: Image = renderer.render(pose, (), float(time))
        told = perturbed(pose, own * random.normal(size=6)) @ wrong
        glimpses.append(look.at(Frame(image, round(time * 1e9), renderer.projection), told))
    return glimpses
