"""One X-ray and one ultrasound frame of a procedure in a simulated patient, with the truth."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from hybrid_guidance.geometry.projection import Projection
from hybrid_guidance.geometry.rigid import inverse, transform_points
from hybrid_guidance.geometry.types import Image, Transform
from hybrid_guidance.imaging.grey import counts_to_grey
from hybrid_guidance.procedure import Procedure, UltrasoundSetup
from hybrid_guidance.simulation.anatomy import Patient, build_patient
from hybrid_guidance.simulation.beams import Scan
from hybrid_guidance.simulation.injectate import Injectate
from hybrid_guidance.simulation.instruments import Needle, bent, needle_on_path
from hybrid_guidance.simulation.scene import Plane, view
from hybrid_guidance.simulation.ultrasound import UltrasoundRenderer
from hybrid_guidance.simulation.xray import Technique, XrayRenderer


class RenderError(OSError):
    """Pictures that cannot be written; the message says what, where and what to do."""


def xray_renderer(procedure: Procedure, patient: Patient, seed: int) -> XrayRenderer:
    """Return the renderer of a procedure's C-arm."""
    setup = procedure.fluoroscopy
    technique = Technique(
        setup.kvp, setup.mas_per_pulse, setup.source_to_detector, setup.detector_size,
        reference_distance=setup.source_to_isocentre - 0.15)
    return XrayRenderer(patient, procedure.fluoroscopy_projection(), technique, seed)


def ultrasound_renderer(procedure: Procedure, patient: Patient, seed: int,
                        pulsation: float = 0.0) -> UltrasoundRenderer:
    """Return the renderer of a procedure's probe."""
    setup = procedure.ultrasound
    return UltrasoundRenderer(patient, setup.probe, procedure.ultrasound_projection(), seed,
                              _scan(setup), pulsation)


def _scan(setup: UltrasoundSetup) -> Scan:
    """Return how a probe scans: pulse and beam get finer with frequency on a linear probe."""
    focus = setup.depth * (0.040 / 0.075)
    if setup.probe.kind != 'linear':
        return Scan(depth=setup.depth, focus=focus)
    finer = max(5e6 / setup.probe.frequency, 0.5)
    return Scan(depth=setup.depth, focus=focus, pulse=0.00022 * finer,
                beam_at_focus=0.00042 * finer, slice_thickness=0.0012 * finer**0.5,
                cell=0.0004 * finer)


def procedure_needle(procedure: Procedure, depth: float | None = None) -> Needle:
    """Return the needle on the planned path.

    Args:
        procedure: what is to be done.
        depth: metres from the entry to the tip along the path; None is at the target.
    """
    depth = procedure.path_length if depth is None else depth
    return needle_on_path(procedure.entry, procedure.target, depth, procedure.needle.diameter,
                          procedure.needle.length)


@dataclass(frozen=True)
class Extras:
    """What a picture may show besides; by default nothing.

    Attributes:
        injected: fluid at the tip, m³.
        iodine: in it, kg/m³.
        bend: curvature of the needle in tissue, 1/m.
        time: seconds; the moment of the heartbeat (and of noise).
        pulsation: of the walls of arteries, as a share of their radius.
        doppler: also write ``ultrasound_doppler.png``.
    """

    injected: float = 0.0
    iodine: float = 0.0
    bend: float = 0.0
    time: float = 0.0
    pulsation: float = 0.0
    doppler: bool = False


def render(procedure: Procedure, seed: int, needle_depth: float | None, output: Path,
           extras: Extras | None = None) -> dict[str, Any]:
    """Write pictures of a procedure in one patient, and ``truth.json``, into a folder.

    ``fluoroscopy.png`` is the procedure's own view, ``fluoroscopy_ap.png`` and
    ``fluoroscopy_lateral.png`` the same C-arm turned to the standard views; all three are for
    the eye (logarithmic, 8 bit). ``fluoroscopy_raw.png`` holds the detector's 16-bit counts.
    ``ultrasound.png`` is the slice, ``scene.png`` all of it in 3-D.

    Args:
        procedure: what is to be done.
        seed: which patient, and the noise.
        needle_depth: metres from the skin to the tip along the path; None is at the target.
        output: folder; made if missing.
        extras: what else to show; the truth is of the needle as it is bent.

    Returns:
        What ``truth.json`` holds: poses in ``patient`` (metres), pixels of tip and shaft.

    Raises:
        RenderError: the folder cannot be written.
    """
    _make(output)
    patient = build_patient(procedure.region, seed, procedure.target)
    extras = extras or Extras()
    straight = procedure_needle(procedure, needle_depth)
    depth = procedure.path_length if needle_depth is None else needle_depth
    needles = bent(straight, extras.bend, depth)
    needle = replace(straight, pose=needles[0].pose)
    fluids = ([Injectate(needle.pose, extras.injected, extras.iodine, seed=seed)]
              if extras.injected > 0.0 else [])
    views = standard_views(procedure)
    counts = {name: xray_renderer(setting, patient, seed).render(
        setting.patient_T_fluoroscopy(), needles, fluids) for name, setting in views.items()}
    scanner = ultrasound_renderer(procedure, patient, seed, extras.pulsation)
    slice_ = scanner.render(procedure.patient_T_ultrasound(), needles, extras.time, fluids)
    pictures = {f'{name}.png': counts_to_grey(raw) for name, raw in counts.items()}
    if extras.doppler:
        pictures['ultrasound_doppler.png'] = scanner.doppler(
            slice_, procedure.patient_T_ultrasound(), extras.time)
    scene = _scene(procedure, patient, needle, pictures['fluoroscopy.png'], slice_)
    truth = _truth(procedure, seed, patient, needle)
    truth['views'] = {name: _seen(setting.patient_T_fluoroscopy(),
                                  setting.fluoroscopy_projection(), needle, 'optical')
                      for name, setting in views.items()}
    try:
        for name, picture in {**pictures, 'fluoroscopy_raw.png': counts['fluoroscopy'],
                              'ultrasound.png': slice_, 'scene.png': scene}.items():
            _write(output / name, picture)
        (output / 'truth.json').write_text(json.dumps(truth, indent=2) + '\n', encoding='utf-8')
    except OSError as error:
        raise RenderError(f'{output}: cannot be written ({error}); name another folder') from error
    return truth


def standard_views(procedure: Procedure) -> dict[str, Procedure]:
    """Return a procedure with its C-arm as it stands, anteroposterior and lateral, by file stem.

    The standard view is the one nearest to the procedure's own: of a prone patient the detector
    of the anteroposterior view is behind the back. Through a trunk's breadth a lateral view needs
    more: automatic exposure is taken to give four times the charge.
    """
    setup = procedure.fluoroscopy
    angle = setup.primary_angle
    front = 0.0 if np.cos(angle) >= 0.0 else np.pi
    side = np.copysign(np.pi / 2, np.sin(angle)) if np.sin(angle) else np.pi / 2
    ap = replace(setup, primary_angle=front, secondary_angle=0.0)
    lateral = replace(setup, primary_angle=float(side), secondary_angle=0.0,
                      mas_per_pulse=4.0 * setup.mas_per_pulse)
    return {'fluoroscopy': procedure,
            'fluoroscopy_ap': replace(procedure, fluoroscopy=ap),
            'fluoroscopy_lateral': replace(procedure, fluoroscopy=lateral)}


def _scene(procedure: Procedure, patient: Patient, needle: Needle, xray: Image,
           slice_: Image) -> Image:
    """Return the 3-D picture, seen from beside the probe, the X-ray 9 cm behind the isocentre.

    There it is as large as its rays are wide: lines from the source through needle and picture.
    """
    image = procedure.patient_T_ultrasound()
    normal = image[:3, 2] if image[:3, 2] @ (1.0, 0.0, -1.0) > 0.0 else -image[:3, 2]
    aside = image[:3, 1] + 0.8 * normal
    pose, projection = procedure.patient_T_fluoroscopy(), procedure.fluoroscopy_projection()
    behind = 0.09 if pose[:3, 2] @ aside > 0.0 else -0.09
    # A little along the rays, or their picture could be seen edge-on.
    forward = aside + 0.7 * np.sign(behind) * pose[:3, 2]
    distance = procedure.fluoroscopy.source_to_isocentre + behind
    focal = projection.matrix[0, 0] / distance
    flat = Projection.orthographic((1.0 / focal, 1.0 / focal),
                                   (float(projection.matrix[0, 2]), float(projection.matrix[1, 2])),
                                   (projection.width, projection.height))
    lens = pose.copy()
    lens[:3, 3] += distance * pose[:3, 2]
    planes = [Plane(lens, flat, xray, 0.9),
              Plane(image, procedure.ultrasound_projection(), slice_, 0.8)]
    return view(patient, needle, planes, procedure.target, forward)


def _make(output: Path) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RenderError(f'{output}: cannot be made ({error}); name another folder') from error


def _write(path: Path, picture: Image) -> None:
    if not cv2.imwrite(str(path), picture):
        raise OSError(f'{path.name} was refused')


def _truth(procedure: Procedure, seed: int, patient: Patient, needle: Needle) -> dict[str, Any]:
    tip = needle.pose[:3, 3]
    return {
        'simulated': True,
        'procedure': procedure.name,
        'seed': seed,
        'patient_T_needle': needle.pose.tolist(),
        'needle_tip_to_target': float(np.linalg.norm(tip - procedure.target)),
        'needle_tip_to_bone': float(patient.distance('bone', tip)),
        'fluoroscopy': _seen(procedure.patient_T_fluoroscopy(),
                             procedure.fluoroscopy_projection(), needle, 'optical'),
        'ultrasound': _seen(procedure.patient_T_ultrasound(),
                            procedure.ultrasound_projection(), needle, 'image'),
    }


def _seen(patient_T_sensor: Transform, projection: Projection, needle: Needle,
          frame: str) -> dict[str, Any]:
    sensor_T_patient = inverse(patient_T_sensor)
    points = transform_points(sensor_T_patient, needle.shaft)
    pixels = projection.pixels(points)
    return {
        f'patient_T_{frame}': patient_T_sensor.tolist(),
        'projection': projection.matrix.tolist(),
        'size': [projection.width, projection.height],
        'tip_pixel': pixels[1].tolist(),
        'shaft_pixels': pixels.tolist(),
        'tip_out_of_plane': float(points[1, 2]) if not projection.is_perspective else None,
    }
