"""Simulated images beside real ones, in numbers: grey levels, speckle, bone, shadow, X-ray noise.

Usage: python bench/realism.py [--plus FOLDER] [--xray FILE] [--picture FILE]

Of every image one JSON line. Real ultrasound: two recordings of the PLUS toolkit, a bone in vivo
under a linear probe and a spine phantom under strong gain; a real X-ray: a DICOM file. What is not
there is left out. Nothing is judged: the real images differ more between themselves than a bar.

Speckle: width at half height of the autocorrelation of grey levels, median of patches of 5 mm.
Bone: along every column whose brightest echo below 8 mm is 180 or more, the width at half of it,
and the mean grey 3 to 10 mm beyond as a share of the mean 3 to 8 mm before. X-ray noise: what a
blur of two pixels takes away, as a share of the grey, median of tiles; its width likewise.
"""

import argparse
import json
import sys
from pathlib import Path

import cv2
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from hybrid_guidance.imaging.dicom import open_dicom
from hybrid_guidance.imaging.grey import counts_to_grey
from hybrid_guidance.imaging.sequence import open_sequence
from hybrid_guidance.procedure import load_procedure
from hybrid_guidance.simulation.anatomy import build_patient
from hybrid_guidance.simulation.render import ultrasound_renderer, xray_renderer

DATA = Path(__file__).resolve().parents[2] / 'shared' / 'data' / 'plus'
# Millimetres a pixel: column norms of Image→Probe in the calibrations beside the recordings.
RECORDINGS = {'bone in vivo, linear probe': ('BoneUltrasound_L14.igs.mha', 0.0854),
              'spine phantom': ('SpinePhantomFreehand.igs.mha', 0.0841)}
SIMULATED = ('shoulder_injection', 'lumbar_facet_injection')
SEEDS = (4, 5, 6)


def half_width(profile: np.ndarray) -> float:
    """Return the width at half of the middle's height, samples, interpolated."""
    middle = len(profile) // 2
    sides = []
    for side in (profile[middle:], profile[middle::-1]):
        below = np.flatnonzero(side < profile[middle] / 2)
        if not len(below):
            return float('nan')
        last = int(below[0])
        sides.append(last - (profile[middle] / 2 - side[last]) / (side[last - 1] - side[last]))
    return float(sum(sides))


def correlation_widths(patch: np.ndarray) -> tuple[float, float]:
    """Return the widths at half height of a patch's autocorrelation down and across, pixels."""
    power = np.abs(np.fft.fft2(patch - patch.mean())) ** 2
    table = np.fft.fftshift(np.fft.ifft2(power).real)
    row, column = (size // 2 for size in table.shape)
    return half_width(table[:, column]), half_width(table[row])


def tiles(picture: np.ndarray, size: int) -> np.ndarray:
    """Return (N, size, size) tiles that do not overlap."""
    return sliding_window_view(picture, (size, size))[::size, ::size].reshape(-1, size, size)


def greys(picture: np.ndarray, inside: np.ndarray) -> dict[str, float]:
    """Return mean, deviation and 95th percentile of what lies inside."""
    values = picture[inside].astype(float)
    return {'grey': round(values.mean(), 1), 'grey_sd': round(values.std(), 1),
            'grey_p95': round(float(np.percentile(values, 95)), 1)}


def ultrasound(pictures: list[np.ndarray], spacing_mm: float) -> dict[str, float]:
    """Return what is measured of B-mode pictures."""
    scanned = np.mean([picture > 0 for picture in pictures], axis=0) > 0.05
    scanned = cv2.morphologyEx(scanned.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((25, 25))) > 0
    found = greys(np.stack(pictures), np.broadcast_to(scanned, (len(pictures), *scanned.shape)))
    size, widths, bones, shadows = round(5.0 / spacing_mm), [], [], []
    for picture in pictures:
        for patch in tiles(picture, size):
            # Tissue that is neither black nor burnt out nor crossed by an interface.
            if 25 < patch.mean() < 140 and patch.max() < 230 and patch.min(axis=0).mean() > 0:
                widths.append(correlation_widths(patch.astype(float)))
        lengths, shares = bone(picture, np.flatnonzero(scanned.any(axis=0)), spacing_mm)
        bones += lengths
        shadows += shares
    down, across = np.nanmedian(np.array(widths), axis=0) * spacing_mm if widths else (np.nan,) * 2
    return {**found, 'speckle_axial_mm': round(float(down), 3),
            'speckle_lateral_mm': round(float(across), 3), 'patches': len(widths),
            'bone_width_mm': round(float(np.median(bones)), 2) if bones else None,
            'shadow_grey_share': round(float(np.median(shadows)), 3) if shadows else None,
            'bone_columns': len(bones)}


def bone(picture: np.ndarray, columns: np.ndarray,
         spacing_mm: float) -> tuple[list[float], list[float]]:
    """Return of every column with a bright echo its width, mm, and its shadow's share of grey."""
    widths, shadows = [], []
    smooth = cv2.blur(picture.astype(np.float32), (round(1.0 / spacing_mm), 1))
    for column in columns:
        line = smooth[:, column]
        top = int(np.argmax(line > 0)) + round(8.0 / spacing_mm)
        if top >= len(line):
            continue
        peak = top + int(np.argmax(line[top:]))
        mm = [peak + round(distance / spacing_mm) for distance in (-8.0, -3.0, 3.0, 10.0)]
        if line[peak] < 180.0 or mm[0] < 0 or mm[3] > len(line):
            continue
        reach = min(peak, len(line) - 1 - peak, round(4.0 / spacing_mm))
        widths.append(half_width(line[peak - reach:peak + reach + 1]) * spacing_mm)
        shadows.append(float(line[mm[2]:mm[3]].mean() / max(line[mm[0]:mm[1]].mean(), 1.0)))
    return [width for width in widths if np.isfinite(width)], shadows


def xray(picture: np.ndarray) -> dict[str, float]:
    """Return what is measured of an X-ray picture of 8 bit, black outside its field."""
    level = picture.astype(np.float32)
    inside = cv2.erode((cv2.GaussianBlur(level, (0, 0), 4.0) > 15).astype(np.uint8),
                       np.ones((15, 15))) > 0
    rest = level - cv2.GaussianBlur(level, (0, 0), 2.0)
    shares, widths = [], []
    for tile, grey, ok in zip(tiles(rest, 32), tiles(level, 32), tiles(inside, 32), strict=True):
        if ok.all() and grey.max() < 250:
            shares.append(tile.std() / grey.mean())
            widths.append(correlation_widths(tile))
    return {**greys(picture, inside), 'noise_share': round(float(np.median(shares)), 4),
            'noise_width_px': round(float(np.nanmedian(widths)), 2), 'tiles': len(shares)}


def simulated(name: str) -> tuple[list[np.ndarray], float, list[np.ndarray]]:
    """Return slices, their mm a pixel, and X-rays of 512² pixels, of some patients."""
    procedure, slices, shadows = load_procedure(name), [], []
    for seed in SEEDS:
        patient = build_patient(procedure.region, seed, procedure.target)
        slices.append(ultrasound_renderer(procedure, patient, seed).render(
            procedure.patient_T_ultrasound()))
        counts = xray_renderer(procedure, patient, seed).render(procedure.patient_T_fluoroscopy())
        shadows.append(counts_to_grey(cv2.resize(counts, (512, 512),
                                                 interpolation=cv2.INTER_AREA)))
    return slices, 1e3 * procedure.ultrasound.pixel_spacing, shadows


def plane(pixels: np.ndarray) -> np.ndarray:
    """Return one channel."""
    return np.ascontiguousarray(pixels if pixels.ndim == 2 else pixels[..., 0])


def gather(plus: Path, film: Path | None) -> list[tuple[str, list[np.ndarray], float]]:
    """Return name, pictures and mm a pixel (0: an X-ray) of all images there are."""
    series: list[tuple[str, list[np.ndarray], float]] = []
    for name, (file, spacing) in RECORDINGS.items():
        if (plus / file).exists():
            recording = open_sequence(plus / file)
            series.append((f'real: {name}', [plane(recording[index].pixels)
                                             for index in range(0, len(recording), 5)], spacing))
    if film is not None and film.exists():
        cine = open_dicom(film, 'fluoroscopy')
        series.append(('real: coronary cine', [plane(cine[len(cine) // 2].pixels)], 0.0))
    for name in SIMULATED:
        slices, spacing, shadows = simulated(name)
        series += [(f'simulated: {name}', slices, spacing),
                   (f'simulated: {name}, X-ray', shadows, 0.0)]
    return series


def main() -> int:
    """Measure everything there is."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--plus', type=Path, default=DATA)
    parser.add_argument('--xray', type=Path)
    parser.add_argument('--picture', type=Path, help='where to put all images side by side')
    arguments = parser.parse_args()
    shown = []
    for name, pictures, spacing in gather(arguments.plus, arguments.xray):
        found = ultrasound(pictures, spacing) if spacing else xray(pictures[0])
        print(json.dumps({'name': name, 'images': len(pictures), **found}), flush=True)
        height = 480
        width = round(pictures[0].shape[1] * height / pictures[0].shape[0])
        shown.append(cv2.resize(pictures[0], (width, height), interpolation=cv2.INTER_AREA))
    if arguments.picture:
        cv2.imwrite(str(arguments.picture), np.hstack(shown))
    return 0


if __name__ == '__main__':
    sys.exit(main())
