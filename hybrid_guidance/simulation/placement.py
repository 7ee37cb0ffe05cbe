"""A procedure put into another patient: same needle, same views, at a target of its own."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from hybrid_guidance.geometry.rigid import rotation_between
from hybrid_guidance.geometry.types import Array, Points
from hybrid_guidance.procedure import Procedure, UltrasoundSetup, face_rise
from hybrid_guidance.simulation.anatomy import AnatomyError, Patient
from hybrid_guidance.simulation.render import xray_renderer
from hybrid_guidance.simulation.shapes import Shape

_FARTHEST = 0.15
# What a slice shows beyond the target, and how deep a probe is pressed into the skin, metres.
_BEYOND, _PRESSED = 0.015, 0.001


def placed(like: Procedure, structures: Mapping[str, Shape], target: Points,
           entry: Points | None = None) -> Procedure:
    """Return a procedure with its C-arm, probe and needle at another target.

    Probe and isocentre keep their place towards the path; the C-arm keeps its angles, and the
    probe is set on the skin along its own depth. A deeper target gets a deeper, coarser slice.

    Args:
        like: the procedure to follow.
        structures: of the patient; needs ``skin``.
        target: (3,) metres, in ``patient``.
        entry: (3,) metres; None is where the direction of ``like`` passes the skin.

    Raises:
        AnatomyError: the target is outside the patient, or no skin is found.
    """
    skin = structures['skin']
    if float(skin.at(target)) > 0.0:
        raise AnatomyError(f'target {np.round(1e3 * target, 1).tolist()} mm is outside the '
                           'patient; is it in LPS axes?')
    way = like.entry - like.target
    entry = _on_skin(skin, target, way / np.linalg.norm(way)) if entry is None else entry
    turn = rotation_between(like.target - like.entry, target - entry)
    setup = _probe(like, skin, turn, target)
    arm = replace(like.fluoroscopy,
                  isocentre=target + turn @ (like.fluoroscopy.isocentre - like.target))
    length = float(np.linalg.norm(target - entry))
    return replace(like, target=target, entry=entry, fluoroscopy=arm, ultrasound=setup,
                   insert_by_eye=like.insert_by_eye * length / like.path_length)


def _on_skin(skin: Shape, start: Points, direction: Array) -> Points:
    """Return where the way from a point inside meets the skin first."""
    steps = np.arange(0.0, _FARTHEST, 0.0002)
    outside = np.flatnonzero(skin.at(start + steps[:, None] * direction) > 0.0)
    if not len(outside):
        raise AnatomyError(f'no skin within {1e3 * _FARTHEST:.0f} mm of '
                           f'{np.round(1e3 * start, 1).tolist()} mm; give an entry point, or '
                           'import more of the CT')
    return np.asarray(start + steps[outside[0]] * direction)


def _probe(like: Procedure, skin: Shape, turn: Array, target: Points) -> UltrasoundSetup:
    setup = like.ultrasound
    depth_direction, lateral = turn @ setup.depth_direction, turn @ setup.lateral
    face = target + turn @ (setup.face - like.target)
    deep = float((target - face) @ depth_direction)
    face = _on_skin(skin, face + deep * depth_direction, -depth_direction)
    face = face + _PRESSED * depth_direction
    depth = max(setup.depth, float((target - face) @ depth_direction) + _BEYOND)
    grown = (depth + face_rise(setup.probe)) / (setup.depth + face_rise(setup.probe))
    return replace(setup, face=face, lateral=lateral, depth_direction=depth_direction, depth=depth,
                   pixel_spacing=setup.pixel_spacing * grown)


def settled_exposure(procedure: Procedure, like: Procedure, patient: Patient,
                     level: float = 0.12) -> Procedure:
    """Return a procedure whose charge is what an automatic exposure control would give.

    Args:
        procedure: in the patient.
        like: sets the limits: a fiftieth to eight times its charge.
        patient: in the beam.
        level: mean of the detector's middle, as a share of its full scale.
    """
    renderer = xray_renderer(procedure, patient, 0)
    counts = renderer.render(procedure.patient_T_fluoroscopy())
    height, width = counts.shape
    middle = counts[height // 3:2 * height // 3, width // 3:2 * width // 3]
    usual = like.fluoroscopy.mas_per_pulse
    wanted = procedure.fluoroscopy.mas_per_pulse * level * 65535.0 / max(float(middle.mean()), 1.0)
    charge = float(np.clip(wanted, usual / 50.0, usual * 8.0))
    return replace(procedure, fluoroscopy=replace(procedure.fluoroscopy, mas_per_pulse=charge))
