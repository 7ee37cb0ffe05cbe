"""Needles where there are none, and how soon one that is there is reported, in ultrasound.

Of every clip or recording of needle-free images: in how many a single image passes for a needle,
and in how many one is reported, that is after images in a row have agreed. Then simulated
procedures: a second without a needle, then it goes in; tissue breathes, the needle trembles. Right
is a shaft within 1.5 mm and 4° of the true one. How late it is reported counts from the first
image that shows it rightly.

Usage: python bench/false_needles.py [--clip FILE]... [--plus FOLDER] [--procedures a,b]
       [--seeds 1-2]

A clip is a DICOM file. The tracked recordings of the PLUS toolkit are in ../shared/data/plus.
"""

import argparse
import json
import sys
from itertools import product
from pathlib import Path

import cv2
import numpy as np

if __name__ == '__main__':
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from hybrid_guidance.detection.succession import Succession
from hybrid_guidance.detection.ultrasound import UltrasoundNeedleDetector
from hybrid_guidance.geometry.projection import Projection
from hybrid_guidance.geometry.rigid import inverse, perturbed, transform
from hybrid_guidance.imaging.dicom import open_dicom
from hybrid_guidance.imaging.frame import Frame
from hybrid_guidance.imaging.player import frame_times
from hybrid_guidance.imaging.sequence import open_sequence
from hybrid_guidance.nodes.ultrasound_tracker_node import UltrasoundTrackerParameters
from hybrid_guidance.planning.path import Path as NeedlePath
from hybrid_guidance.procedure import load_procedure, procedure_names
from hybrid_guidance.ros.calibration import load_beliefs
from hybrid_guidance.simulation.anatomy import build_patient
from hybrid_guidance.simulation.instruments import Needle
from hybrid_guidance.simulation.motion import make_motion
from hybrid_guidance.simulation.render import ultrasound_renderer
from hybrid_guidance.simulation.room import make_room

DATA = Path(__file__).resolve().parents[2] / 'shared' / 'data' / 'plus'
PLUS = ('SpinePhantomFreehand', 'BoneUltrasound_L14', 'fCal_Test_Calibration_3NWires_fCal2.0',
        'fCal_Test_Validation_3NWires_fCal2.0', 'WaterTankBottomTranslationVideoBuffer')
BAR = 1.0 / 200.0
RATE, EMPTY_S, SECONDS = 30.0, 1.0, 10.0
RIGHT_MM, RIGHT_DEG = 1.5, 4.0
TREMOR = np.array([1e-4, 1e-4, 1e-4, 2e-3, 2e-3, 2e-3])


class Watcher:
    """Looks at images as the tracker node does."""

    def __init__(self) -> None:
        known = self.known = UltrasoundTrackerParameters()
        self.detect = UltrasoundNeedleDetector(minimum_length=known.minimum_length)
        self.agrees = Succession(known.confirm)

    def __call__(self, frame: Frame):
        """Return the needle of one image, if one passes for it, and whether it is reported."""
        found = self.detect(frame)
        if found is not None and found.probability < self.known.threshold:
            found = None
        return found, self.agrees(found, frame.stamp_ns)


def clip(path: Path) -> dict:
    """Count the needles of a needle-free recording."""
    recording = open_dicom(path, 'ultrasound') if path.suffix == '.dcm' else open_sequence(path)
    watcher, single, reported = Watcher(), 0, 0
    for index, time in enumerate(frame_times(recording)):
        pixels = recording[index].pixels
        found, told = watcher(Frame(pixels, int(time * 1e9) + 1,
                                    Projection.uncalibrated(pixels.shape[::-1])))
        single, reported = single + (found is not None), reported + told
    return {'name': path.name, 'images': len(recording), 'single': single, 'reported': reported}


def images(name: str, seed: int):
    """Yield frames of a simulated procedure, and (4, 4) ``sensor_T_needle`` where it is in."""
    procedure, random = load_procedure(name), np.random.default_rng([seed, 0xde7])
    room, motion = make_room(procedure, load_beliefs('simulated'), seed), make_motion(
        procedure.region, seed, 1.0)
    scanner = ultrasound_renderer(
        procedure, build_patient(procedure.region, seed, procedure.target), seed)
    path = NeedlePath(procedure.entry, procedure.target)
    needle = Needle(transform(), procedure.needle.diameter, procedure.needle.length)
    beside = perturbed(np.eye(4), random.standard_normal(6) * [1e-3, 1e-3, 0.0, 0.01, 0.01, 0.0])
    tremor = np.zeros(6)
    for number in range(int(SECONDS * RATE)):
        time = number / RATE
        tremor = 0.85 * tremor + 0.53 * TREMOR * random.standard_normal(6)
        sensor_T_patient = inverse(room.world_T_probe @ room.probe_T_ultrasound) @ (
            room.world_T_patient @ motion.at(time))
        share, placed = (time - EMPTY_S) / (SECONDS - EMPTY_S), []
        if share >= 0.0:
            placed = [needle.at(path.pose_at(0.006 + share * (path.length - 0.006)) @ beside
                                @ perturbed(np.eye(4), tremor))]
        pixels = scanner.render(inverse(sensor_T_patient), placed, time)
        yield (Frame(pixels.copy(), int(time * 1e9) + 1, scanner.projection),
               sensor_T_patient @ placed[0].pose if placed else None)


def is_right(found, projection: Projection, pose) -> bool:
    """Tell whether a needle lies on the true shaft."""
    tip, back = projection.pixels(np.stack([pose[:3, 3], pose[:3, 3] - 0.01 * pose[:3, 2]]))
    way = (tip - back) / np.linalg.norm(tip - back)
    scale = 1e3 * float(np.linalg.norm(projection.metres_per_pixel() @ found.normal))
    return bool(abs((tip - found.tip) @ found.normal) * scale < RIGHT_MM
                and way @ found.direction > np.cos(np.deg2rad(RIGHT_DEG)))


def procedure(name: str, seed: int) -> dict:
    """Count right and wrong needles of a simulated procedure."""
    watcher, shown, late = Watcher(), None, None
    row = dict.fromkeys(('empty', 'empty_single', 'empty_reported', 'in', 'right_single',
                         'right_reported', 'wrong_single', 'wrong_reported', 'left_out'), 0)
    for frame, pose in images(name, seed):
        found, told = watcher(frame)
        row['empty' if pose is None else 'in'] += 1
        if found is None:
            continue
        right = pose is not None and is_right(found, frame.projection, pose)
        kind = 'empty' if pose is None else 'right' if right else 'wrong'
        row[f'{kind}_single'] += 1
        row[f'{kind}_reported'] += told
        if right:
            shown = frame.stamp_ns if shown is None else shown
            row['left_out'] += late is not None and not told
            late = (frame.stamp_ns - shown) * 1e-9 if told and late is None else late
    return {'name': name, 'seed': seed, **row, 'late_s': late, 'never': bool(
        shown is not None and late is None)}


def real(paths: list[Path]) -> bool:
    """Print the clips; tell whether the bar holds."""
    rows = [clip(path) for path in paths]
    for row in rows:
        print(json.dumps({'real': row}), flush=True)
    total = {key: sum(row[key] for row in rows) for key in ('images', 'single', 'reported')}
    share = total['reported'] / max(total['images'], 1)
    print(json.dumps({'name': 'false_needles_real', 'value': round(share, 5), 'unit': 'share',
                      'bar': BAR, 'reference': round(total['single'] / max(total['images'], 1), 5),
                      'ratio': round(share / BAR, 3)}))
    return share <= BAR


def simulated(names: list[str], seeds: range) -> bool:
    """Print the procedures; tell whether the bar holds."""
    rows = []
    for seed, name in product(seeds, names):
        rows.append(procedure(name, seed))
        print(json.dumps({'simulated': rows[-1]}), flush=True)
    total = {key: sum(row[key] for row in rows) for key in rows[0]
             if key not in ('name', 'seed', 'late_s')}
    late = [row['late_s'] for row in rows if row['late_s'] is not None]
    print(json.dumps({'simulated': total, 'late_s_p50': round(float(np.median(late)), 3),
                      'late_s_worst': round(max(late), 3)}))
    share = total['empty_reported'] / total['empty']
    print(json.dumps({'name': 'false_needles_simulated', 'value': round(share, 5),
                      'unit': 'share', 'bar': BAR,
                      'reference': round(total['empty_single'] / total['empty'], 5),
                      'ratio': round(share / BAR, 3)}))
    return share <= BAR


def main() -> int:
    """Look at all there is; exit status zero when the bars hold."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--clip', type=Path, action='append', default=[])
    parser.add_argument('--plus', type=Path, default=DATA)
    parser.add_argument('--procedures', default=','.join(procedure_names()))
    parser.add_argument('--seeds', default='1-2', help='first-last, or one')
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    recordings = [arguments.plus / f'{name}.igs.mha' for name in PLUS]
    paths = arguments.clip + [path for path in recordings if path.is_file()]
    first, _, last = arguments.seeds.partition('-')
    good = real(paths) if paths else True
    return 0 if simulated(arguments.procedures.split(','),
                          range(int(first), int(last or first) + 1)) and good else 1


if __name__ == '__main__':
    sys.exit(main())
