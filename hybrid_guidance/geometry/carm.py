"""How a C-arm stands towards the patient, by DICOM's positioner angles.

DICOM PS3.3 C.8.7.5.1.2: angles are those of the detector about the patient. Primary: 0 before the
chest, +90° at the patient's left (LAO), -90° at the right (RAO). Secondary: +90° at the head
(cranial), -90° at the feet (caudal). ``docs/carm.md`` has the drawing.
"""

import numpy as np

from hybrid_guidance.geometry.rigid import transform
from hybrid_guidance.geometry.types import Array, Points, Transform


def beam_direction(primary: float, secondary: float) -> Array:
    """Return the (3,) direction from source to detector in the patient (LPS axes).

    Args:
        primary: radians, positive towards the patient's left.
        secondary: radians, positive towards the head.
    """
    return np.array([np.sin(primary) * np.cos(secondary), -np.cos(primary) * np.cos(secondary),
                     np.sin(secondary)])


def patient_T_optical(primary: float, secondary: float, source_to_isocentre: float,
                      isocentre: Points) -> Transform:
    """Return the (4, 4) pose of ``fluoroscopy_optical_frame``: origin at the source.

    z goes to the detector, y to the patient's feet as far as the beam allows, x completes the
    triad: seen along the beam. At 0°/0° x is the patient's right; the pictures that radiologists
    look at are seen against the beam, with the patient's left on the right, which is the mirror
    image.

    Args:
        primary: radians.
        secondary: radians; not ±90°, where the image has no upright.
        source_to_isocentre: metres.
        isocentre: (3,) metres, in the patient.
    """
    z = beam_direction(primary, secondary)
    x = np.cross(np.array([0.0, 0.0, -1.0]), z)
    x /= np.linalg.norm(x)
    return transform(np.column_stack([x, np.cross(z, x), z]), isocentre - source_to_isocentre * z)
