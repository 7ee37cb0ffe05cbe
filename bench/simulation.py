"""How fast the digital patient is seen: X-ray pulses and B-mode frames on one core.

Usage: python bench/simulation.py [--frames 60]

One JSON line per number: medians of the processor's time, so that other work on the machine
counts less. The volume of the first is 256³ voxels of the lumbar patient, soft tissue and bone,
seen from another angle every time, down to the noise. In the others a needle moves in every
image. With the package itk-rtk installed, its Joseph projector takes the same bone through the
same rays on one thread; the two images are correlated as well.
"""

import argparse
import json
import sys
import time

import cv2
import numpy as np

from hybrid_guidance.geometry.projection import Projection
from hybrid_guidance.geometry.rigid import perturbed, pose_along
from hybrid_guidance.procedure import load_procedure
from hybrid_guidance.simulation.anatomy import Grid, Patient, build_patient, empty_patient
from hybrid_guidance.simulation.render import (
    procedure_needle,
    ultrasound_renderer,
    xray_renderer,
)
from hybrid_guidance.simulation.xray import Technique, XrayRenderer

PROCEDURE = 'lumbar_facet_injection'
SEED = 1
COUNT = 256
SIZE = 512
SOURCE_TO_ISOCENTRE = 0.6


def line(name: str, value: float, unit: str, bar: float) -> str:
    """Return one JSON line of a benchmark."""
    return json.dumps({'name': name, 'value': round(value, 4), 'unit': unit, 'bar': bar,
                       'reference': bar, 'ratio': round(value / bar, 4)})


def median_seconds(call, frames: int) -> float:
    """Return the median time of ``call(number)``, after one call that does not count."""
    call(0)
    times = []
    for number in range(1, frames + 1):
        begun = time.process_time()
        call(number)
        times.append(time.process_time() - begun)
    return float(np.median(times))


def cube(patient: Patient) -> Patient:
    """Return the middle of a patient as 256³ voxels, without its surround."""
    start = np.maximum((np.array(patient.grid.shape) - COUNT) // 2, 0)
    window = tuple(slice(int(first), int(first) + COUNT) for first in start)
    spacing = patient.grid.spacing
    return empty_patient(Grid(np.full(3, -spacing * (COUNT - 1) / 2), spacing, (COUNT,) * 3),
                         labels=patient.labels[window].copy(),
                         mineral=patient.mineral[window].copy())


def looking(angle: float) -> np.ndarray:
    """Return the pose of a source that looks at the isocentre from the front, turned."""
    direction = np.array([np.sin(angle), np.cos(angle), 0.05])
    return pose_along(-SOURCE_TO_ISOCENTRE * direction / np.linalg.norm(direction), direction)


def anatomy_ms(patient: Patient, frames: int) -> tuple[float, XrayRenderer]:
    """Return the time of a 512² image of 256³ voxels, every ray anew, ms; and its renderer."""
    focal = SIZE / 0.3
    projection = Projection.perspective((focal, focal), ((SIZE - 1) / 2,) * 2, (SIZE, SIZE))
    renderer = XrayRenderer(cube(patient), projection, Technique(), anatomy_step=1)
    seconds = median_seconds(
        lambda number: renderer.render(looking(0.4 * np.sin(number))), frames)
    return 1e3 * seconds, renderer


def rtk_projector(renderer: XrayRenderer):
    """Return a function from an angle to RTK's image of the same bone; None without RTK."""
    try:
        import itk
        rtk = itk.RTK
    except (ImportError, AttributeError):
        return None
    itk.MultiThreaderBase.SetGlobalDefaultNumberOfThreads(1)
    grid = renderer.patient.grid
    volume = itk.image_from_array(renderer.patient.mineral.astype(np.float32) / 255.0)
    volume.SetSpacing([grid.spacing * 1e3] * 3)
    volume.SetOrigin([float(value * 1e3) for value in grid.origin])
    kind = type(volume)
    pixel = 0.3e3 / SIZE

    def project(pose: np.ndarray) -> np.ndarray:
        # The detector is 1 m from the source; RTK takes millimetres.
        places = 1e3 * pose[:3, 3], 1e3 * (pose[:3, 3] + pose[:3, 2]), pose[:3, 0], pose[:3, 1]
        geometry = rtk.ThreeDCircularProjectionGeometry.New()
        geometry.AddProjection(*(place.tolist() for place in places))
        stack = rtk.ConstantImageSource[kind].New()
        stack.SetOrigin([-pixel * (SIZE - 1) / 2] * 2 + [0.0])
        stack.SetSpacing([pixel, pixel, 1.0])
        stack.SetSize([SIZE, SIZE, 1])
        caster = rtk.JosephForwardProjectionImageFilter[kind, kind].New()
        caster.SetInput(0, stack.GetOutput())
        caster.SetInput(1, volume)
        caster.SetGeometry(geometry)
        caster.Update()
        return np.asarray(itk.array_from_image(caster.GetOutput())[0] * 1e-3)
    return project


def against_rtk(renderer: XrayRenderer, frames: int) -> bool:
    """Print how much faster than RTK the bone is projected, and how like its image."""
    project = rtk_projector(renderer)
    if project is None:
        print('itk-rtk is not installed: not compared', file=sys.stderr)
        return True
    bone, matrix = renderer._bone, renderer.projection.matrix
    ours = median_seconds(lambda number: bone.integrate(
        matrix, looking(0.4 * np.sin(number)), (SIZE, SIZE)), frames)
    theirs = median_seconds(lambda number: project(looking(0.4 * np.sin(number))), frames)
    print(line('bone 512x512 of 256x256x256, times as fast as RTK', theirs / ours, 'x', 1.5))
    pose = looking(0.3)
    pair = bone.integrate(matrix, pose, (SIZE, SIZE)) / 255.0, project(pose)
    likeness = float(np.corrcoef(*(each.ravel() for each in pair))[0, 1])
    print(line('correlation with RTK', likeness, 'r', 0.995), flush=True)
    return theirs >= 1.5 * ours and likeness >= 0.995


def pulses_hz(patient: Patient, frames: int) -> float:
    """Return 1024² pulses per second of a standing C-arm while a needle goes in."""
    procedure = load_procedure(PROCEDURE)
    renderer = xray_renderer(procedure, patient, SEED)
    pose = procedure.patient_T_fluoroscopy()
    return 1.0 / median_seconds(lambda number: renderer.render(
        pose, [procedure_needle(procedure, 0.02 + 0.0005 * (number % 80))]), frames)


def scans_hz(patient: Patient, frames: int, moving: bool) -> float:
    """Return 640×480 frames per second while a needle goes in, and the probe moves or not."""
    procedure = load_procedure(PROCEDURE)
    renderer = ultrasound_renderer(procedure, patient, SEED)
    pose = procedure.patient_T_ultrasound()

    def scan(number: int) -> None:
        off = np.array([0, 0, 1e-4 * (number % 50) * moving, 0, 0, 0])
        renderer.render(perturbed(pose, off),
                        [procedure_needle(procedure, 0.02 + 0.0005 * (number % 80))],
                        number / 100.0)
    return 1.0 / median_seconds(scan, frames)


def main() -> int:
    """Run everything; exit status zero when every bar holds."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--frames', type=int, default=60)
    frames = parser.parse_args().frames
    cv2.setNumThreads(1)
    patient = build_patient('lumbar', SEED, load_procedure(PROCEDURE).target)
    milliseconds, renderer = anatomy_ms(patient, max(frames // 4, 3))
    print(line('x-ray 512x512 of 256x256x256', milliseconds, 'ms', 150.0), flush=True)
    good = milliseconds <= 150.0
    good &= against_rtk(renderer, max(frames // 10, 3))
    for name, rate in (('x-ray pulses 1024x1024, C-arm stands', pulses_hz(patient, frames)),
                       ('ultrasound 640x480, probe stands', scans_hz(patient, frames, False)),
                       ('ultrasound 640x480, probe moves', scans_hz(patient, frames, True))):
        good &= rate >= 100.0
        print(line(name, rate, 'Hz', 100.0), flush=True)
    return 0 if good else 1


if __name__ == '__main__':
    sys.exit(main())
