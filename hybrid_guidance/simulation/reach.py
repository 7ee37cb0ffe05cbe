"""Whether a procedure can be done in a patient: path, target and what each imager sees of them."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from hybrid_guidance.geometry.rigid import angle_between, inverse, transform_points
from hybrid_guidance.geometry.types import Array, Points
from hybrid_guidance.procedure import Procedure
from hybrid_guidance.simulation.shapes import Shape

_STEP = 0.0005
BONE_MARGIN = 0.0005
NEAR_TIP = 0.015


@dataclass(frozen=True)
class Reach:
    """What the truth says about one procedure in one patient. Metres and radians.

    Attributes:
        bone: least distance of the path's axis to bone, less the needle's radius; away from its
            surface the field of bone tells less than the distance, never more.
        margins: structure to its least distance to the path, less radius and margin asked.
        entry_to_skin: how far the entry is from the skin.
        out_of_slice: how far the path leaves the slice.
        shaft_to_beam: angle between shaft and ultrasound beam at the target.
        shaft_to_ray: angle between shaft and X-ray at the target.
        ray_to_slice_normal: angle between the two blind directions, up to π/2.
        seen: share of the last 15 mm that the slice holds and no bone shadows.
        target_seen: the same of the target alone.
        in_x_ray: the whole path is on the detector.
    """

    bone: float
    margins: Mapping[str, float]
    entry_to_skin: float
    out_of_slice: float
    shaft_to_beam: float
    shaft_to_ray: float
    ray_to_slice_normal: float
    seen: float
    target_seen: bool
    in_x_ray: bool

    @property
    def free(self) -> bool:
        """Whether the needle gets to the target without touching what it must not."""
        return (self.bone > BONE_MARGIN and min(self.margins.values(), default=1.0) > 0.0
                and self.entry_to_skin < 0.001)


def examine(procedure: Procedure, structures: Mapping[str, Shape]) -> Reach:
    """Examine the planned path against the solids of one patient.

    Args:
        procedure: what is to be done.
        structures: name to solid, as ``build_structures`` makes them for this procedure's target.
    """
    count = int(np.ceil(procedure.path_length / _STEP)) + 1
    path = np.linspace(procedure.entry, procedure.target, count)
    radius = procedure.needle.diameter / 2
    margins = {name: float(structures[name].at(path).min()) - radius - margin
               for name, margin in procedure.avoid.items()}
    image_T_patient = inverse(procedure.patient_T_ultrasound())
    ends = transform_points(image_T_patient, path)
    shaft = procedure.target - procedure.entry
    optical = procedure.patient_T_fluoroscopy()
    pixels = procedure.fluoroscopy_projection().pixels(transform_points(inverse(optical), path))
    ray = procedure.target - optical[:3, 3]
    normal = procedure.patient_T_ultrasound()[:3, 2]
    beam = procedure.target - _face_points(procedure, ends[-1:])[0]
    last = path[np.linalg.norm(path - procedure.target, axis=1) <= NEAR_TIP]
    seen = _seen(procedure, structures['bone'], last)
    return Reach(
        float(structures['bone'].at(path).min()) - radius, margins,
        abs(float(structures['skin'].at(procedure.entry))), float(np.abs(ends[:, 2]).max()),
        _acute(shaft, beam), _acute(shaft, ray), _acute(ray, normal), float(seen.mean()),
        bool(seen[-1]), bool(np.all(procedure.fluoroscopy_projection().contains(pixels, 20))))


def _acute(first: Array, second: Array) -> float:
    angle = float(angle_between(first, second))
    return min(angle, float(np.pi) - angle)


def _face_points(procedure: Procedure, points: Points) -> Points:
    """Return where on the transducer's face the beams through points of the slice begin.

    Args:
        procedure: whose probe.
        points: (N, 3) in the image frame, their elevation ignored.

    Returns:
        (N, 3) in ``patient``.
    """
    radius = procedure.ultrasound.probe.radius
    flat = points * (1.0, 1.0, 0.0)
    if np.isfinite(radius):
        ray = flat + (0.0, radius, 0.0)
        face = ray * (radius / np.linalg.norm(ray, axis=1, keepdims=True)) - (0.0, radius, 0.0)
    else:
        face = flat * (1.0, 0.0, 1.0)
    return transform_points(procedure.patient_T_ultrasound(), face)


def _seen(procedure: Procedure, bone: Shape, points: Points) -> Array:
    """Return for each of (N, 3) points whether its beam is in the sector and meets no bone."""
    probe = procedure.ultrasound.probe
    inside_T_patient = inverse(procedure.patient_T_ultrasound())
    local = transform_points(inside_T_patient, points)
    face = _face_points(procedure, local)
    share = np.linspace(0.0, 1.0, 161)[:, None, None]
    clear = np.min(bone.at(face + share * (points - face)), axis=0) > 0.0
    if np.isfinite(probe.radius):
        across = np.arctan2(local[:, 0], local[:, 1] + probe.radius)
    else:
        across = local[:, 0]
    deep = np.linalg.norm(points - face, axis=1)
    held = (np.abs(across) < probe.field_of_view / 2) & (deep < procedure.ultrasound.depth)
    return np.asarray(clear & held & (np.abs(local[:, 2]) < 0.001))
