"""The needle in an image: measured where the last image had it, beside a search of all of it.

A needle goes in on its planned path, with a tremor, before both simulated sensors. One detector
follows it through the images; another forgets, and searches each of them. Both run in turn on one
core, so whatever else the machine does slows both. Everything is simulated.

Usage: python bench/detection.py [--frames 100]
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np

BAR = 0.6
SEED = 1


def render_frames(count: int):
    """Return both sensors' images and, of each, the (2,) px of the needle's tip."""
    from hybrid_guidance.geometry.rigid import inverse, perturbed, transform, transform_points
    from hybrid_guidance.imaging.frame import Frame
    from hybrid_guidance.planning.path import Path as NeedlePath
    from hybrid_guidance.procedure import load_procedure
    from hybrid_guidance.simulation.anatomy import build_patient
    from hybrid_guidance.simulation.instruments import Needle
    from hybrid_guidance.simulation.render import ultrasound_renderer, xray_renderer

    procedure = load_procedure('lumbar_facet_injection')
    patient = build_patient(procedure.region, SEED, procedure.target)
    random = np.random.default_rng(SEED)
    path = NeedlePath(procedure.entry, procedure.target)
    needle = Needle(transform(), procedure.needle.diameter, procedure.needle.length)
    ultrasound = ultrasound_renderer(procedure, patient, SEED)
    xray = xray_renderer(procedure, patient, SEED)
    seen = {'ultrasound': (procedure.patient_T_ultrasound(), ultrasound.projection),
            'xray': (procedure.patient_T_fluoroscopy(), xray.projection)}
    images: dict[str, list] = {name: [] for name in seen}
    tremor = np.zeros(6)
    for number, depth in enumerate(np.linspace(0.03, path.length, count)):
        tremor = 0.9 * tremor + random.normal(size=6) * [4e-5, 4e-5, 4e-5, 6e-4, 6e-4, 6e-4]
        placed = needle.at(perturbed(path.pose_at(depth), tremor))
        for name, (patient_T_sensor, projection) in seen.items():
            pixels = (xray.render(patient_T_sensor, [placed]) if name == 'xray' else
                      ultrasound.render(patient_T_sensor, [placed], number / 30.0))
            tip = transform_points(inverse(patient_T_sensor), placed.pose[:3, 3])
            images[name].append((Frame(pixels.copy(), number, projection),
                                 projection.pixels(tip)))
    return images


def timed(detector, frame):
    """Return what a detector finds, and the milliseconds it took."""
    begin = time.perf_counter()
    needle = detector(frame)
    return needle, (time.perf_counter() - begin) * 1e3


def compare(kind: type, images) -> dict[str, tuple[np.ndarray, np.ndarray, int]]:
    """Return the times in ms, the errors of the tip in px, and the misses of both ways."""
    follow = kind()
    follow(images[0][0])
    times: dict[str, list[float]] = {'tracked': [], 'search': []}
    errors: dict[str, list[float]] = {'tracked': [], 'search': []}
    fresh = kind()
    for frame, tip in images[1:]:
        fresh.forget()
        for name, detector in (('tracked', follow), ('search', fresh)):
            needle, duration = timed(detector, frame)
            times[name].append(duration)
            if needle is not None and needle.probability >= 0.5:
                errors[name].append(float(np.linalg.norm(needle.tip - tip)))
    return {name: (np.array(times[name]), np.array(errors[name]),
                   len(images) - 1 - len(errors[name])) for name in times}


def spread(values) -> str:
    """Return p50, p95 and p99 for people."""
    return '  '.join(f'p{q} {np.percentile(values, q):6.2f}' for q in (50, 95, 99))


def report(frames: int) -> bool:
    """Measure, print, end each comparison with one JSON line; tell whether the bars hold."""
    from hybrid_guidance.detection.ultrasound import UltrasoundNeedleDetector
    from hybrid_guidance.detection.xray import XrayNeedleDetector

    images, good = render_frames(frames), True
    for name, kind in (('ultrasound', UltrasoundNeedleDetector), ('xray', XrayNeedleDetector)):
        results = compare(kind, images[name])
        print(f'{name}: {frames - 1} images (simulated)')
        for way, (times, errors, misses) in results.items():
            print(f'  {way:8} {spread(times)} ms   tip {spread(errors)} px   {misses} missed')
        value, reference = (float(np.median(results[way][0])) for way in ('tracked', 'search'))
        good &= value <= BAR * reference
        print(json.dumps({'name': f'detection_{name}', 'value': round(value, 3), 'unit': 'ms',
                          'bar': round(BAR * reference, 3), 'reference': round(reference, 3),
                          'ratio': round(value / reference, 3)}))
    return good


def main() -> int:
    """Run with OpenCV on one core."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--frames', type=int, default=100)
    import cv2
    cv2.setNumThreads(1)
    return 0 if report(parser.parse_args().frames) else 1


if __name__ == '__main__':
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    sys.exit(main())
