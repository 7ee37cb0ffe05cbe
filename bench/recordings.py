"""Real recordings through the whole graph: every frame, every pose, and where the pixels lie.

Each recording is played by the nodes that ``hybrid-guidance up`` starts. A process of its own
listens. What it heard is compared with what the file itself says, read here once more without the
package: times, poses and the calibration's matrix in millimetres.

Usage: python bench/recordings.py [--seconds 60] [--xray FILE]... [--ultrasound FILE]...
       [--plus FOLDER] [--only WORD]

Without arguments: the tracked recordings of the PLUS toolkit in ../shared/data/plus, if there.
"""

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import zlib
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

DATA = Path(__file__).resolve().parents[2] / 'shared' / 'data' / 'plus'
PLUS = {
    'SpinePhantomFreehand.igs.mha': 'PlusDeviceSet_SpinePhantomFreehandReconstructionOnly.xml',
    'fCal_Test_Calibration_3NWires_fCal2.0.igs.mha':
        'FreehandCalibration3NWires_fCal2.0.results.xml',
    'fCal_Test_Validation_3NWires_fCal2.0.igs.mha':
        'FreehandCalibration3NWires_fCal2.0.results.xml',
    'BoneUltrasound_L14.igs.mha': 'BoneUltrasound_L14_config.xml'}
CORNER_BAR_MM = 0.01
SETTLE = 1.5


@dataclass(frozen=True)
class Item:
    """One recording: file, the sensor that plays it, and a PLUS calibration for a sequence."""

    file: Path
    sensor: str
    plus: Path | None = None

    @property
    def source(self) -> str:
        """The source of the image node."""
        return 'dicom' if self.plus is None else 'sequence'


@dataclass(frozen=True)
class Truth:
    """What the file says, read without the package except for decoding pixels.

    Attributes:
        times: seconds of each frame since the first.
        period: seconds from a first frame to the next one.
        checksums: of each frame's pixels.
        size: (width, height).
        poses_mm: recorded name such as ``ProbeToTracker`` to (4, 4) or None for each frame.
        image_to_probe_mm: PLUS's matrix, if any.
    """

    times: np.ndarray
    period: float
    checksums: list[int]
    size: tuple[int, int]
    poses_mm: dict[str, list]
    image_to_probe_mm: np.ndarray | None


def read_truth(item: Item) -> Truth:
    """Read a recording."""
    from hybrid_guidance.imaging.dicom import open_dicom
    from hybrid_guidance.imaging.sequence import open_sequence

    poses, matrix = {}, None
    if item.plus is None:
        recording = open_dicom(item.file, item.sensor)
        times, period = dicom_times(item.file)
    else:
        recording = open_sequence(item.file)
        times, poses = sequence_fields(item.file)
        period = times[-1] + float(np.median(np.diff(times)))
        for element in ElementTree.parse(item.plus).iter('Transform'):
            if (element.get('From'), element.get('To')) == ('Image', 'Probe'):
                matrix = np.array(element.get('Matrix').split(), float).reshape(4, 4)
    images = [recording[index].pixels for index in range(len(recording))]
    return Truth(times, period, [zlib.adler32(image.tobytes()) for image in images],
                 images[0].shape[::-1], poses, matrix)


def dicom_times(path: Path) -> tuple[np.ndarray, float]:
    """Return frame times and period of a file with FrameTime or FrameTimeVector."""
    import pydicom
    header = pydicom.dcmread(path, stop_before_pixels=True)
    count = int(header.get('NumberOfFrames') or 1)
    if header.get('FrameTime'):
        step = float(header.FrameTime) * 1e-3
    elif header.get('FrameTimeVector'):
        times = np.cumsum(np.array(header.FrameTimeVector, float)) * 1e-3
        times -= times[0]
        return times, float(times[-1] + np.median(np.diff(times)))
    else:
        step = 1.0 / float(header.get('CineRate') or header.RecommendedDisplayFrameRate)
    return np.arange(count) * step, count * step


def sequence_fields(path: Path) -> tuple[np.ndarray, dict[str, list]]:
    """Return times and poses out of the text of a sequence's header."""
    text = path.read_bytes().partition(b'ElementDataFile')[0].decode('latin-1')
    times = np.array(re.findall(r'Timestamp = (\S+)', text), float)
    poses: dict[str, list] = {}
    for number, name, numbers in re.findall(r'Seq_Frame(\d+)_(\w+)Transform = (.*)', text):
        status = re.search(rf'Seq_Frame{number}_{name}TransformStatus = (\w+)', text)
        good = status is None or status[1] == 'OK'
        poses.setdefault(name, []).append(
            np.array(numbers.split(), float).reshape(4, 4) if good else None)
    return times - times[0], poses


class Listener:
    """Keeps everything that is published, in a form that JSON takes."""

    def __init__(self) -> None:
        self.images: list = []
        self.infos: list = []
        self.tf: list = []
        self.static: dict = {}
        self.status: list = []
        self.needles: list = []

    def on_image(self, message) -> None:
        """Keep stamp, arrival and checksum."""
        self.images.append((stamp_of(message.header), time.time_ns(), zlib.adler32(message.data)))

    def on_info(self, message) -> None:
        """Keep the projection."""
        self.infos.append((stamp_of(message.header), list(message.p)))

    def on_tf(self, message) -> None:
        """Keep transforms that move."""
        for item in message.transforms:
            self.tf.append((item.header.frame_id, item.child_frame_id, stamp_of(item.header),
                            pose_of(item.transform)))

    def on_static(self, message) -> None:
        """Keep the latest static transforms."""
        for item in message.transforms:
            self.static[f'{item.header.frame_id} {item.child_frame_id}'] = pose_of(item.transform)

    def on_status(self, message) -> None:
        """Keep what nodes say of themselves."""
        for status in message.status:
            self.status.append((stamp_of(message.header), status.name, status.level[0],
                                status.message, {one.key: one.value for one in status.values}))

    def on_needle(self, message) -> None:
        """Keep the stamp."""
        self.needles.append(stamp_of(message.header))


def stamp_of(header) -> int:
    """Return a header's stamp in nanoseconds."""
    return header.stamp.sec * 1_000_000_000 + header.stamp.nanosec


def pose_of(transform) -> tuple[float, ...]:
    """Return (x, y, z, qw, qx, qy, qz)."""
    t, q = transform.translation, transform.rotation
    return t.x, t.y, t.z, q.w, q.x, q.y, q.z


def listen(sensor: str) -> None:
    """Receive everything until told to stop, then print it as JSON."""
    import rclpy
    from diagnostic_msgs.msg import DiagnosticArray
    from geometry_msgs.msg import PoseWithCovarianceStamped
    from rclpy.node import Node
    from rclpy.qos import DurabilityPolicy, QoSProfile
    from sensor_msgs.msg import CameraInfo, Image
    from tf2_msgs.msg import TFMessage

    rclpy.init()
    node, heard = Node('bench_listener'), Listener()
    deep = QoSProfile(depth=500)
    latched = QoSProfile(depth=100, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    for kind, topic, callback, quality in (
            (Image, f'{sensor}/image_raw', heard.on_image, QoSProfile(depth=60)),
            (CameraInfo, f'{sensor}/camera_info', heard.on_info, deep),
            (TFMessage, '/tf', heard.on_tf, deep),
            (TFMessage, '/tf_static', heard.on_static, latched),
            (DiagnosticArray, '/diagnostics', heard.on_status, deep),
            (PoseWithCovarianceStamped, f'{sensor}/needle', heard.on_needle, deep)):
        node.create_subscription(kind, topic, callback, quality)
    print('ready', flush=True)
    with contextlib.suppress(KeyboardInterrupt, rclpy.executors.ExternalShutdownException):
        rclpy.spin(node)
    print(json.dumps(vars(heard)), flush=True)


def import_plus(item: Item, size: tuple[int, int], output: Path) -> None:
    """Make the calibration file of a sequence, usable today."""
    subprocess.run([sys.executable, '-m', 'hybrid_guidance.cli', 'import-plus', str(item.plus),
                    str(output), '--width', str(size[0]), '--height', str(size[1]),
                    '--date', '2012-09-11', '--expires', '2099-01-01'],
                   check=True, stdout=subprocess.DEVNULL)


def play(item: Item, size: tuple[int, int], seconds: float) -> tuple[dict, list[str], int]:
    """Play one recording; return what was heard, nodes that died, and when the playing ended."""
    from hybrid_guidance import graph
    from hybrid_guidance.supervisor import Supervisor, node_command, ros_arguments

    dead: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        # A source without a file: the other modality is absent, not simulated.
        given = {'fluoroscopy_source': 'dicom', 'ultrasound_source': 'dicom'}
        given |= {f'{item.sensor}_source': item.source, f'{item.sensor}_file': str(item.file)}
        if item.plus is not None:
            given['calibration_file'] = str(Path(folder) / 'calibration.yaml')
            import_plus(item, size, Path(given['calibration_file']))
        values = graph.complete(given)
        supervisor = Supervisor(lambda name, line: None, lambda name, status, lines: dead.append(
            f'{name} (status {status}): {lines[-1] if lines else ""}'), os.environ)
        listener = subprocess.Popen([sys.executable, __file__, '--listen', item.sensor],
                                    text=True, stdout=subprocess.PIPE)
        assert listener.stdout is not None
        try:
            listener.stdout.readline()
            for name, parameters in graph.nodes(values):
                supervisor.start(name, node_command(name, *ros_arguments(name, parameters)))
            deadline = time.monotonic() + seconds + 5.0
            while time.monotonic() < deadline:
                supervisor.watch()
                time.sleep(0.1)
            # What was shown shortly before has arrived by now.
            ended = time.time_ns() - int(1e9)
            player = supervisor.children.get(f'{item.sensor}_node')
            if player is not None:
                player.process.send_signal(signal.SIGINT)
            time.sleep(SETTLE)
        finally:
            supervisor.stop()
            listener.send_signal(signal.SIGINT)
            heard = json.loads(listener.stdout.readline())
    return heard, dead, ended


def matrix(pose) -> np.ndarray:
    """Return (x, y, z, qw, qx, qy, qz) as a (4, 4) matrix in metres."""
    from transforms3d.affines import compose
    from transforms3d.quaternions import quat2mat
    return compose(pose[:3], quat2mat(pose[3:]), np.ones(3))


def frames_due(truth: Truth, images, ended: int) -> tuple[list[int], list[int]]:
    """Return indices that were due from the first heard image on, and those that were heard.

    A frame that was not heard, or heard with other pixels or off its time, is -1.
    """
    first = min(stamp for stamp, _, _ in images)
    checksum = next(sum_ for stamp, _, sum_ in images if stamp == first)
    heard = {stamp: sum_ for stamp, _, sum_ in images}
    stamps = np.array(sorted(heard))
    best: tuple[list[int], list[int]] = ([], [])
    # Still frames may look alike: of the starts that fit, the one that explains most.
    for start in (i for i, sum_ in enumerate(truth.checksums) if sum_ == checksum):
        due, found, count = [], [], start
        while True:
            turn, index = divmod(count, len(truth.times))
            at = first + (turn * truth.period + truth.times[index] - truth.times[start]) * 1e9
            if at > ended:
                break
            nearest = int(stamps[np.abs(stamps - at).argmin()])
            fits = abs(nearest - at) < 1e4 and heard[nearest] == truth.checksums[index]
            due.append(index)
            found.append(index if fits else -1)
            count += 1
        if not best[0] or found.count(-1) < best[1].count(-1):
            best = due, found
    return best


def tracker_lost(heard: dict, sensor: str) -> tuple[int, int, int]:
    """Return frames that the tracker missed, those it saw, and needles it reported.

    Its count grows from each of its reports to its last one, after the end, by as many as there
    were images in between, but for those on their way at that moment.
    """
    reports = [(stamp, int(values['frames']), int(values['needles']))
               for stamp, name, _, _, values in heard['status']
               if name == f'{sensor}_tracker_node' and 'frames' in values]
    stamps = np.array([stamp for stamp, _, _ in heard['images']])
    _, last, needles = reports[-1]
    missed = [int(np.count_nonzero(stamps > at)) - (last - count) for at, count, _ in reports[:10]]
    return max(missed), last, needles


def poses_and_corners(truth: Truth, heard: dict, ended: int) -> tuple[int, int, float]:
    """Return recorded poses due and missing on tf, and the largest corner error in mm."""
    sent = {(child, stamp): matrix(pose) for _, child, stamp, pose in heard['tf']}
    infos = dict(heard['infos'])
    index_of = {sum_: index for index, sum_ in enumerate(truth.checksums)}
    mount = matrix(heard['static']['ultrasound_probe ultrasound_image'])
    width, height = truth.size
    corners = [(u, v) for u in (0.0, width - 1.0) for v in (0.0, height - 1.0)]
    due = missing = 0
    worst = 0.0
    first_tf = min(stamp for _, stamp in sent) if sent else 0
    for stamp, _, checksum in heard['images']:
        index = index_of.get(checksum)
        if index is None or not first_tf <= stamp <= ended:
            continue
        for name, child in (('ProbeToTracker', 'ultrasound_probe'),
                            ('ReferenceToTracker', 'reference')):
            if truth.poses_mm[name][index] is not None:
                due += 1
                missing += (child, stamp) not in sent
        pose = sent.get(('ultrasound_probe', stamp))
        if pose is None or stamp not in infos:
            continue
        to_pixel = np.reshape(infos[stamp], (3, 4))[:, [0, 1, 3]]
        for u, v in corners:
            x, y, w = np.linalg.solve(to_pixel, (u, v, 1.0))
            ours_mm = 1e3 * (pose @ mount @ (x / w, y / w, 0.0, 1.0))[:3]
            theirs_mm = (truth.poses_mm['ProbeToTracker'][index] @ truth.image_to_probe_mm
                         @ (u, v, 0.0, 1.0))[:3]
            worst = max(worst, float(np.linalg.norm(ours_mm - theirs_mm)))
    return due, missing, worst


def check(item: Item, seconds: float) -> dict:
    """Play one recording and return the row of the table."""
    truth = read_truth(item)
    heard, dead, ended = play(item, truth.size, seconds)
    row: dict = {'recording': item.file.name.split('.')[0], 'dead': dead, 'due': 0, 'lost': 0}
    if not heard['images']:
        return {**row, 'fault': 'no image was heard: ' + '; '.join(sorted({
            text for _, name, _, text, _ in heard['status'] if name == f'{item.sensor}_node'}))}
    due, found = frames_due(truth, heard['images'], ended)
    missed, seen, needles = tracker_lost(heard, item.sensor)
    delays = [(arrived - stamp) * 1e-6 for stamp, arrived, _ in heard['images']]
    row |= {'due': len(due), 'lost': found.count(-1), 'tracker lost': missed,
            'tracker saw': seen, 'needles': needles, 'needles heard': len(heard['needles']),
            'delay p50 ms': float(np.median(delays)), 'delay max ms': max(delays),
            'rate': (len(truth.times) / truth.period)}
    player = [values for _, name, _, _, values in heard['status']
              if name == f'{item.sensor}_node' and 'late' in values]
    row['late'] = int(player[-1]['late']) if player else -1
    if item.plus is not None:
        row['poses due'], row['poses lost'], row['corner mm'] = poses_and_corners(
            truth, heard, ended)
    row['good'] = (not dead and row['lost'] == 0 and missed <= 0 and row.get('poses lost', 0) == 0
                   and row.get('corner mm', 0.0) <= CORNER_BAR_MM)
    return row


def print_table(rows: list[dict]) -> None:
    """Print what people read."""
    columns = (('recording', '<', 38, ''), ('rate', '>', 6, '.2f'), ('due', '>', 6, ''),
               ('lost', '>', 5, ''), ('tracker saw', '>', 12, ''), ('tracker lost', '>', 13, ''),
               ('needles', '>', 8, ''), ('poses due', '>', 10, ''),
               ('poses lost', '>', 11, ''),
               ('corner mm', '>', 10, '.6f'), ('late', '>', 5, ''),
               ('delay p50 ms', '>', 13, '.1f'),
               ('delay max ms', '>', 13, '.1f'), ('good', '>', 6, ''))
    print(''.join(f'{name:{side}{width}}' for name, side, width, _ in columns))
    for row in rows:
        print(''.join(f'{format(row[name], form) if name in row else "-":{side}{width}}'
                      for name, side, width, form in columns))
        for fault in (*row['dead'], *([row['fault']] if 'fault' in row else [])):
            print(f'    {fault}')
    for row in rows:
        print(json.dumps({'name': f'recording_{row["recording"]}_frames_lost',
                          'value': row['lost'], 'unit': 'frames', 'bar': 0,
                          'reference': row['due'],
                          'ratio': round(row['lost'] / max(row['due'], 1), 5)}))


def items(arguments: argparse.Namespace) -> list[Item]:
    """Return the recordings that are there, and say which are not."""
    wanted = [Item(path, sensor) for sensor, paths in (
        ('fluoroscopy', arguments.xray), ('ultrasound', arguments.ultrasound)) for path in paths]
    wanted += [Item(arguments.plus / name, 'ultrasound', arguments.plus / calibration)
               for name, calibration in PLUS.items()]
    there = []
    for item in wanted:
        if arguments.only and not any(word in item.file.name for word in arguments.only):
            continue
        missing = [path for path in (item.file, item.plus) if path and not path.is_file()]
        if missing:
            print(f'skipped {item.file.name}: {missing[0]} is not there')
        else:
            there.append(item)
    return there


def main() -> int:
    """Play all; exit status zero when every check holds."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--seconds', type=float, default=60.0, help='of each recording')
    parser.add_argument('--xray', type=Path, action='append', default=[], metavar='FILE',
                        help='DICOM cine for the fluoroscopy node; may be repeated')
    parser.add_argument('--ultrasound', type=Path, action='append', default=[], metavar='FILE',
                        help='DICOM clip for the ultrasound node; may be repeated')
    parser.add_argument('--plus', type=Path, default=DATA, metavar='FOLDER',
                        help='recordings and configurations of the PLUS toolkit')
    parser.add_argument('--only', action='append', default=[], metavar='WORD',
                        help='only recordings with this in their name; may be repeated')
    parser.add_argument('--listen', choices=('fluoroscopy', 'ultrasound'),
                        help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    from hybrid_guidance.ros import environment
    os.environ.setdefault('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
    environment.prepare()
    if arguments.listen:
        listen(arguments.listen)
        return 0
    rows = []
    for item in items(arguments):
        print(f'playing {item.file.name} for {arguments.seconds:g} s', flush=True)
        rows.append(check(item, arguments.seconds))
    if not rows:
        print('no recording is there: nothing was checked')
        return 0
    print_table(rows)
    return 0 if all(row.get('good') for row in rows) else 1


if __name__ == '__main__':
    sys.exit(main())
