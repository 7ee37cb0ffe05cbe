"""Tissues: their labels in a voxel volume and what X-rays and ultrasound make of them."""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from hybrid_guidance.geometry.types import Array

WATER_LEVEL = 200.0
"""Value of a voxel as dense to X-rays as water."""


class Tissue(IntEnum):
    """Label of a tissue in ``Patient.labels``."""

    AIR = 0
    GAS = 1
    SKIN = 2
    FAT = 3
    MUSCLE = 4
    FASCIA = 5
    VISCERA = 6
    LIGAMENT = 7
    CARTILAGE = 8
    DISC = 9
    NERVE = 10
    FLUID = 11
    BLOOD = 12
    CANCELLOUS = 13
    CORTICAL = 14


@dataclass(frozen=True)
class Properties:
    """Bulk properties.

    Attributes:
        density: X-ray attenuation over that of water at 60 keV, of what is not bone mineral.
        scatter_db: mean echo against the brightest bone surface, dB.
        attenuation: ultrasound amplitude, dB/(cm·MHz), one way.
    """

    density: float
    scatter_db: float
    attenuation: float


# Densities: ICRU Report 44. Attenuation: F. A. Duck, Physical Properties of Tissue (1990), and
# ICRU Report 61. Echo levels: order of magnitude of the same, trimmed to look like clinical
# images at 50-60 dB; they mean nothing in absolute terms.
PROPERTIES: dict[Tissue, Properties] = {
    Tissue.AIR: Properties(0.0, -80.0, 0.0),
    Tissue.GAS: Properties(0.0, -45.0, 2.0),
    Tissue.SKIN: Properties(1.08, -22.0, 0.9),
    Tissue.FAT: Properties(0.89, -42.0, 0.5),
    Tissue.MUSCLE: Properties(1.04, -50.0, 0.6),
    Tissue.FASCIA: Properties(1.06, -27.0, 0.8),
    Tissue.VISCERA: Properties(1.03, -42.0, 0.5),
    Tissue.LIGAMENT: Properties(1.08, -36.0, 0.9),
    Tissue.CARTILAGE: Properties(1.09, -44.0, 0.7),
    Tissue.DISC: Properties(1.09, -36.0, 0.8),
    Tissue.NERVE: Properties(1.04, -32.0, 0.6),
    Tissue.FLUID: Properties(1.01, -60.0, 0.05),
    Tissue.BLOOD: Properties(1.05, -58.0, 0.2),
    Tissue.CANCELLOUS: Properties(0.83, -44.0, 2.5),
    Tissue.CORTICAL: Properties(0.1, -40.0, 2.5),
}


def table(name: str) -> Array:
    """Return a (256,) table of one property by label, zero where no tissue has the label."""
    values = np.zeros(256)
    for tissue, properties in PROPERTIES.items():
        values[tissue] = getattr(properties, name)
    return values


def density_table() -> NDArray[np.uint8]:
    """Return the (256,) table from label to X-ray density, ``WATER_LEVEL`` for water."""
    return np.asarray(np.round(WATER_LEVEL * table('density')), np.uint8)
