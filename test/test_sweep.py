"""``hybrid-guidance register surface``: one simulated sweep as a bag and as a PLUS sequence."""

import json
import zlib
from datetime import datetime, timedelta, timezone
from pathlib import Path

import cv2
import numpy as np
import pytest
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from hybrid_guidance.calibration.file import Calibration, Delay, load, save
from hybrid_guidance.cli import main
from hybrid_guidance.geometry.rigid import (
    inverse,
    perturbed,
    quaternion,
    rotation_from_vector,
    transform,
    transform_points,
)
from hybrid_guidance.imaging.frame import Frame
from hybrid_guidance.imaging.geometry import ImageGeometry
from hybrid_guidance.imaging.volume import Volume, write_nifti
from hybrid_guidance.procedure import load_procedure
from hybrid_guidance.simulation.anatomy import build_patient
from hybrid_guidance.simulation.motion import probe_sweep
from hybrid_guidance.simulation.render import ultrasound_renderer
from hybrid_guidance.simulation.scanner import scanned
from hybrid_guidance.sweep import face_radius

PROCEDURE = load_procedure('lumbar_facet_injection')
TARGET = [f'{1e3 * value:.3f}' for value in PROCEDURE.target]
SEED, LATE = 43, 0.12
ROOM = transform(rotation_from_vector(np.array([0.3, -0.8, 0.4])), np.array([0.2, -0.1, 0.5]))
PROBE = transform(rotation_from_vector(np.array([0.1, 0.2, 1.4])), np.array([0.01, 0.08, 0.02]))


def entry(kind: str, parent: str, child: str, pose, **more) -> Calibration:
    now = datetime.now(timezone.utc)
    return Calibration(kind, parent, child, pose, 1e-8 * np.eye(6), 'test', now,
                       now + timedelta(days=1), None, None, None, None, 'test', **more)


def write_bag(folder: Path, times, images, probes, projection) -> None:
    types = get_typestore(Stores.ROS2_KILTED)
    kinds = types.types
    header, stamp = kinds['std_msgs/msg/Header'], kinds['builtin_interfaces/msg/Time']

    def at(time: float):
        return stamp(sec=int(time), nanosec=round((time % 1.0) * 1e9))

    with Writer(folder, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        topics = {name: writer.add_connection(name, kind, typestore=types) for name, kind in (
            ('/room/ultrasound/image_raw', 'sensor_msgs/msg/Image'),
            ('/room/ultrasound/camera_info', 'sensor_msgs/msg/CameraInfo'),
            ('/tf', 'tf2_msgs/msg/TFMessage'))}

        def write(topic: str, message) -> None:
            connection = topics[topic]
            writer.write(connection, round(time * 1e9),
                         types.serialize_cdr(message, connection.msgtype))
        roi = kinds['sensor_msgs/msg/RegionOfInterest'](
            x_offset=0, y_offset=0, height=0, width=0, do_rectify=False)
        for time, image, pose in zip(times, images, probes, strict=True):
            height, width = image.shape
            head = header(stamp=at(time), frame_id='ultrasound_image')
            write('/room/ultrasound/image_raw', kinds['sensor_msgs/msg/Image'](
                header=head, height=height, width=width, encoding='mono8', is_bigendian=0,
                step=width, data=image.ravel()))
            write('/room/ultrasound/camera_info', kinds['sensor_msgs/msg/CameraInfo'](
                header=head, height=height, width=width, distortion_model='plumb_bob',
                d=np.zeros(5), k=np.eye(3).ravel(), r=np.eye(3).ravel(),
                p=projection.matrix.ravel(), binning_x=0, binning_y=0, roi=roi))
            x, y, z, w = quaternion(pose)
            write('/tf', kinds['tf2_msgs/msg/TFMessage'](transforms=[
                kinds['geometry_msgs/msg/TransformStamped'](
                    header=header(stamp=at(time), frame_id='world'),
                    child_frame_id='ultrasound_probe',
                    transform=kinds['geometry_msgs/msg/Transform'](
                        translation=kinds['geometry_msgs/msg/Vector3'](*pose[:3, 3].tolist()),
                        rotation=kinds['geometry_msgs/msg/Quaternion'](x=x, y=y, z=z, w=w)))]))


def write_sequence(path: Path, times, images, probes) -> None:
    """Write as PLUS does: poses and images in millimetres, the images told ``LATE`` too late."""
    height, width = images[0].shape
    lines = ['ObjectType = Image', 'NDims = 3', 'BinaryData = True',
             'BinaryDataByteOrderMSB = False', 'CompressedData = True',
             f'DimSize = {width} {height} {len(images)}', 'Kinds = domain domain list',
             'ElementType = MET_UCHAR', 'UltrasoundImageOrientation = MF']
    shown = np.interp(np.asarray(times) - LATE, times, np.arange(len(times)))
    stack = np.stack([images[round(index)] for index in shown])
    for index, (time, pose) in enumerate(zip(times, probes, strict=True)):
        moved = pose.copy()
        moved[:3, 3] *= 1e3
        start = f'Seq_Frame{index:04d}_'
        lines += [f'{start}ProbeToTrackerTransform = '
                  + ' '.join(f'{value:.9g}' for value in moved.flat),
                  f'{start}ProbeToTrackerTransformStatus = OK',
                  f'{start}Timestamp = {time:.6f}', f'{start}ImageStatus = OK']
    lines.append('ElementDataFile = LOCAL')
    path.write_bytes('\n'.join(lines).encode() + b'\n' + zlib.compress(stack.tobytes()))


@pytest.fixture(scope='module')
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the CT, a calibration, and the sweep in both forms."""
    folder = tmp_path_factory.mktemp('sweep')
    patient = build_patient('lumbar', SEED, PROCEDURE.target)
    ct = scanned(patient, SEED)
    write_nifti(folder / 'ct.nii.gz', Volume(ct.volume, transform(np.diag(ct.spacing), ct.origin)))
    renderer = ultrasound_renderer(PROCEDURE, patient, SEED)
    # The recorder's clock is the simulation's; an image each LATE seconds, so that one is late.
    times = 100.0 + LATE * np.arange(150)
    poses = [PROCEDURE.patient_T_ultrasound() @ probe_sweep(time - 100.0, 0.035) for time in times]
    images = [renderer.render(pose, (), float(time))
              for pose, time in zip(poses, times, strict=True)]
    probes = [ROOM @ pose @ inverse(PROBE) for pose in poses]
    write_bag(folder / 'bag', times, images, probes, renderer.projection)
    write_sequence(folder / 'sweep.igs.mha', times, images, probes)
    matrix = renderer.projection.matrix
    plane = ImageGeometry((1.0 / matrix[0, 0], 1.0 / matrix[1, 1]), (matrix[0, 3], matrix[1, 3]))
    start = perturbed(ROOM, np.array([0.003, -0.002, 0.003, 0.03, 0.0, -0.03]))
    now = datetime.now(timezone.utc)
    save(folder / 'calibration.yaml', [
        entry('ultrasound-spatial', 'ultrasound_probe', 'ultrasound_image', PROBE, image=plane),
        entry('registration', 'world', 'patient', start)],
        [Delay('ultrasound', LATE, 0.001, 'test', now, now + timedelta(days=1), None, None, None,
               None, 'test')])
    return folder


def register(folder: Path, sweep: str, output: Path, *more: str) -> int:
    return main(['register', 'surface', str(folder / sweep), '--ct', str(folder / 'ct.nii.gz'),
                 '--calibration', str(folder / 'calibration.yaml'), '--output', str(output),
                 '--write', str(output / 'new.yaml'), *more])


@pytest.mark.parametrize(('sweep', 'names'), [
    ('bag', ()), ('sweep.igs.mha', ('--fixed', 'Tracker', '--probe', 'Probe'))])
def test_recorded_sweep_puts_the_patient_into_the_calibration_file(
        recorded: Path, tmp_path: Path, sweep: str, names: tuple[str, ...]) -> None:
    assert register(recorded, sweep, tmp_path, '--target', *TARGET, *names) == 0
    (found,) = load(tmp_path / 'new.yaml', datetime.now(timezone.utc))
    assert (found.kind, found.parent, found.child) == ('registration', 'world', 'patient')
    assert 'accepted' in found.method
    miss = (transform_points(found.transform, PROCEDURE.target)
            - transform_points(ROOM, PROCEDURE.target))
    assert np.linalg.norm(miss) < 0.001
    report = json.loads((tmp_path / 'registration.json').read_text())
    assert report['fitting'] > 0.9
    picture = cv2.imread(str(tmp_path / 'surface.png'))
    green = (picture[..., 1] > 200) & (picture[..., 2] < 120)
    assert green[360:].sum() > 500 > 10 > green[:360].sum()


def test_refused_sweep_writes_no_patient(recorded: Path, tmp_path: Path,
                                         capsys: pytest.CaptureFixture[str]) -> None:
    """Negative control: the start is one vertebra off."""
    start = ROOM @ transform(translation=np.array([0.0, 0.0, 0.035]))
    (tmp_path / 'start.yaml').write_text(json.dumps({'fixed_T_moving': start.tolist()}))
    assert register(recorded, 'bag', tmp_path, '--target', *TARGET, '--start',
                    str(tmp_path / 'start.yaml')) == 1
    assert 'refused' in capsys.readouterr().out
    assert not (tmp_path / 'new.yaml').exists()


@pytest.mark.parametrize(('sweep', 'more', 'words'), [
    ('bag', (), '--target'),
    ('bag', ('--target', *TARGET, '--probe', 'stylus'), 'stylus and world are not connected'),
    ('sweep.igs.mha', ('--target', *TARGET), 'never seen together'),
    ('nothing', ('--target', *TARGET), 'no such file')])
def test_what_a_sweep_lacks_is_named(recorded: Path, tmp_path: Path, sweep: str,
                                     more: tuple[str, ...], words: str,
                                     capsys: pytest.CaptureFixture[str]) -> None:
    assert register(recorded, sweep, tmp_path, *more) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize('name', ['lumbar_facet_injection', 'supraspinatus_prp'])
def test_radius_of_the_face_is_seen_in_the_image(name: str) -> None:
    procedure = load_procedure(name)
    renderer = ultrasound_renderer(procedure, build_patient(procedure.region, 1), 1)
    image = renderer.render(procedure.patient_T_ultrasound())
    found = face_radius(Frame(image, 0, renderer.projection))
    true = procedure.ultrasound.probe.radius
    assert found == true or abs(found - true) < 0.05 * true
