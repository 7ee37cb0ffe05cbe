"""X-rays in a row: what earlier pictures add to each by itself, with and without wires in the body.

Of each simulated patient: twelve needle-free X-rays over breaths, then eleven along the insertion;
or sixteen of a needle that stands still from the first on. One detector keeps earlier pictures,
another searches each picture as if it were the first. Wires are straight steel, 0.15 to 0.45 mm
thick and 4 to 15 cm long, anywhere about the target: nothing but having been there tells the
thicker from a needle, so most needle-free pictures with wires show one. Where the C-arm moves it
does so before every third picture, by millimetres and degrees. Everything is simulated.

Usage: python bench/earlier_xrays.py [--procedures a,b] [--seeds 760-761]
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

from detection_errors import Case, compared, truth

from hybrid_guidance.detection.xray import XrayNeedleDetector
from hybrid_guidance.geometry.rigid import inverse, perturbed, pose_along
from hybrid_guidance.imaging.frame import Frame
from hybrid_guidance.procedure import procedure_names
from hybrid_guidance.simulation.instruments import Needle
from hybrid_guidance.simulation.render import xray_renderer

SCENES = {'plain': {}, 'plain, C-arm moves': {'moves': True}, 'wires': {'wires': 4},
          'wires, C-arm moves': {'wires': 4, 'moves': True},
          'wires, needle stands still': {'wires': 4, 'still': True},
          'wires, needle stands still, C-arm moves': {'wires': 4, 'still': True, 'moves': True}}
MOVE = np.array([0.004, 0.004, 0.004, 0.03, 0.03, 0.03])
COUNTS = 'empty', 'false', 'full', 'right', 'wrong'


class Row(Case):
    """One simulated patient, with wires in the body or not."""

    def pictures(self, wires: int = 0, moves: bool = False, still: bool = False):
        """Yield frames and the (4, 4) needle in them, or None."""
        imager = xray_renderer(self._procedure, self._patient, self._seed)
        steel, world_T_sensor = [self._wire() for _ in range(wires)], (
            self._room.world_T_carm @ self._room.carm_T_fluoroscopy)
        depths = [0.7 * self._path.length] * 16 if still else [None] * 12 + list(
            np.linspace(0.01, self._path.length, 11))
        for number, depth in enumerate(depths):
            if moves and number % 3 == 2:
                world_T_sensor = perturbed(
                    world_T_sensor, self._random.standard_normal(6) * MOVE)
            time, placed = 0.7 * number, [] if depth is None else self._at(depth)
            sensor_T_patient = inverse(world_T_sensor) @ (
                self._room.world_T_patient @ self._motion.at(time))
            pixels = imager.render(inverse(sensor_T_patient), placed + steel).copy()
            yield (Frame(pixels, int(time * 1e9) + 1, imager.projection),
                   sensor_T_patient @ placed[0].pose if placed else None)

    def _wire(self) -> Needle:
        random = self._random
        at = self._path.pose_at(self._path.length)[:3, 3] + 0.03 * random.standard_normal(3)
        return Needle(pose_along(at, random.standard_normal(3)), random.uniform(1.5e-4, 4.5e-4),
                      random.uniform(0.04, 0.15), hub_length=0.0)


def look(frames) -> dict[str, np.ndarray]:
    """Return the counts of each way of looking at one row of frames."""
    ways = {'by itself': XrayNeedleDetector(), 'in a row': XrayNeedleDetector()}
    counts = {way: dict.fromkeys(COUNTS, 0) for way in ways}
    for frame, pose in frames:
        true = None if pose is None else truth(frame, pose)
        ways['by itself'].forget()
        for way, detect in ways.items():
            found = detect(frame)
            found = found if found is not None and found.probability >= 0.5 else None
            row = counts[way]
            if pose is None:
                row['empty'] += 1
                row['false'] += found is not None
            elif true is not None:
                is_right = found is not None and compared(found, *true) is not None
                row['full'] += 1
                row['right'] += is_right
                row['wrong'] += found is not None and not is_right
    return {way: np.array(list(row.values())) for way, row in counts.items()}


def main() -> int:
    """Run all scenes; exit status zero where none is worse in a row, by more than a hundredth."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--procedures', default=','.join(procedure_names()))
    parser.add_argument('--seeds', default='760-761', help='first-last, or one')
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    first, _, last = arguments.seeds.partition('-')
    cases = list(product(arguments.procedures.split(','),
                         range(int(first), int(last or first) + 1)))
    good = True
    for scene, options in SCENES.items():
        looks = [look(Row(name, seed).pictures(**options)) for name, seed in cases]
        alone, together = (dict(zip(COUNTS, sum(each[way] for each in looks).tolist(), strict=True))
                           for way in ('by itself', 'in a row'))
        good &= (together['false'] <= alone['false'] + 0.01 * alone['empty']
                 and together['right'] >= alone['right'] - 0.01 * alone['full'])
        print(json.dumps({'scene': scene, 'by itself': alone, 'in a row': together}), flush=True)
    return 0 if good else 1


if __name__ == '__main__':
    sys.exit(main())
