"""The bone surface in real ultrasound, drawn for an expert to look at, and in wires, where none is.

Six frames of each recording of bone are drawn twice, as recorded and with what was found (red:
sure, yellow: less). In the N-wire phantom and the water tank nothing may be found in any frame.

Usage: python bench/bone_surface.py [--plus FOLDER] [--output FOLDER]

Without arguments: the recordings of the PLUS toolkit in ../shared/data/plus, if there.
"""

import argparse
import sys
from pathlib import Path

import cv2
import numpy as np
from registration import line

DATA = Path(__file__).resolve().parents[2] / 'shared' / 'data' / 'plus'
BONE = ('SpinePhantomFreehand.igs.mha', 'BoneUltrasound_L14.igs.mha')
NONE = ('fCal_Test_Calibration_3NWires_fCal2.0.igs.mha',
        'fCal_Test_Validation_3NWires_fCal2.0.igs.mha',
        'WaterTankBottomTranslationVideoBuffer.igs.mha')


def drawn(pixels: np.ndarray, points: np.ndarray, confidence: np.ndarray) -> np.ndarray:
    """Return an image beside itself with the surface on it, (H, 2W, 3) uint8 BGR."""
    plain = cv2.cvtColor(pixels, cv2.COLOR_GRAY2BGR)
    marked = plain.copy()
    for (u, v), sure in zip(points, confidence, strict=True):
        cv2.circle(marked, (round(u), round(v)), 2, (0, round(255.0 * (1.0 - sure)), 255), -1)
    return np.hstack([plain, marked])


def main() -> int:
    """Draw and count; exit status zero where nothing is found in wires and water."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--plus', type=Path, default=DATA, metavar='FOLDER')
    parser.add_argument('--output', type=Path, default=Path('bone-surface'))
    arguments = parser.parse_args()
    from hybrid_guidance.detection.bone_surface import BoneSurfaceDetector
    from hybrid_guidance.imaging.sequence import open_sequence
    detector, wrong = BoneSurfaceDetector(), 0
    arguments.output.mkdir(parents=True, exist_ok=True)
    for name in (*BONE, *NONE):
        if not (arguments.plus / name).is_file():
            print(f'{name}: left out, not in {arguments.plus}')
            continue
        recording, counts, pictures = open_sequence(arguments.plus / name), [], []
        shown = np.linspace(0, len(recording) - 1, 6).astype(int)
        for index in range(len(recording)):
            frame = recording[index]
            points, confidence = detector(frame)
            counts.append(len(points))
            if name in BONE and index in shown:
                pictures.append(drawn(frame.pixels, points, confidence))
        found = np.array(counts)
        print(f'{name}: {len(found)} frames, bone in {np.sum(found > 0)}, points in the median of '
              f'these {np.median(found[found > 0]) if found.any() else 0:.0f}')
        if pictures:
            sheet = np.vstack([np.hstack(pictures[row:row + 2]) for row in (0, 2, 4)])
            cv2.imwrite(str(arguments.output / f'{name.partition(".")[0]}.png'), sheet)
        else:
            wrong += int(np.sum(found > 0))
    print(line('bone surface frames of wires and water with bone', wrong, 'frames', 0))
    return 0 if wrong == 0 else 1


if __name__ == '__main__':
    sys.exit(main())
