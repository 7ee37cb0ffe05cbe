"""Projectors of others, asked for the same rays as ours: RTK (Joseph) and DiffDRR (trilinear).

Both are optional: ``pip install itk-rtk`` and ``pip install torch`` with ``pip install --no-deps
diffdrr``. Each runs on one thread.
"""

from collections.abc import Callable

import numpy as np

from hybrid_guidance.geometry.projection import Projection
from hybrid_guidance.imaging.volume import Volume

Projector = Callable[[np.ndarray], np.ndarray]
# Rows that DiffDRR renders at once: all its samples are in memory together.
_ROWS = 16


def along_axes(volume: Volume) -> Volume:
    """Return a volume whose axes already are those of the patient, with rising coordinates."""
    values, affine = volume.values, volume.patient_T_voxel.copy()
    if not np.allclose(affine[:3, :3], np.diag(np.diag(affine[:3, :3])), atol=1e-9):
        raise ValueError('the axes of this volume are turned')
    for axis in range(3):
        if affine[axis, axis] < 0.0:
            affine[axis, 3] += affine[axis, axis] * (values.shape[2 - axis] - 1)
            affine[axis, axis] *= -1.0
            values = np.flip(values, 2 - axis)
    return Volume(np.ascontiguousarray(values, np.float32), affine)


def rtk_projector(volume: Volume, projection: Projection) -> Projector | None:
    """Return a function from the pose of the source to RTK's line integrals, m; None without RTK.

    Args:
        volume: along the axes.
        projection: with its principal point in the middle, and square pixels.
    """
    try:
        import itk
        rtk = itk.RTK
    except (ImportError, AttributeError):
        return None
    itk.MultiThreaderBase.SetGlobalDefaultNumberOfThreads(1)
    image = itk.image_from_array(volume.values)
    image.SetSpacing([float(value * 1e3) for value in volume.spacing])
    image.SetOrigin([float(value * 1e3) for value in volume.patient_T_voxel[:3, 3]])
    kind = type(image)
    size, pixel = (projection.width, projection.height), 1e3 / float(projection.matrix[0, 0])

    def project(pose: np.ndarray) -> np.ndarray:
        # The detector is 1 m from the source; RTK takes millimetres.
        places = 1e3 * pose[:3, 3], 1e3 * (pose[:3, 3] + pose[:3, 2]), pose[:3, 0], pose[:3, 1]
        geometry = rtk.ThreeDCircularProjectionGeometry.New()
        geometry.AddProjection(*(place.tolist() for place in places))
        stack = rtk.ConstantImageSource[kind].New()
        stack.SetOrigin([-pixel * (count - 1) / 2 for count in size] + [0.0])
        stack.SetSpacing([pixel, pixel, 1.0])
        stack.SetSize([*size, 1])
        caster = rtk.JosephForwardProjectionImageFilter[kind, kind].New()
        caster.SetInput(0, stack.GetOutput())
        caster.SetInput(1, image)
        caster.SetGeometry(geometry)
        caster.Update()
        return np.asarray(itk.array_from_image(caster.GetOutput())[0] * 1e-3)
    return project


def diffdrr_projector(volume: Volume, projection: Projection) -> Projector | None:
    """Return a function from the pose of the source to DiffDRR's line integrals, m, or None.

    Args:
        volume: along the axes.
        projection: any.
    """
    try:
        import torch
        from diffdrr.renderers import Trilinear
    except ImportError:
        return None
    torch.set_num_threads(1)
    # DiffDRR takes (x, y, z) arrays and places in voxels.
    voxels = torch.from_numpy(np.ascontiguousarray(volume.values.transpose(2, 1, 0)))
    renderer, spacing = Trilinear(), volume.spacing
    columns, rows = np.meshgrid(np.arange(projection.width), np.arange(projection.height))
    matrix = projection.matrix
    rays = np.stack([(columns - matrix[0, 2]) / matrix[0, 0],
                     (rows - matrix[1, 2]) / matrix[1, 1], np.ones(rows.shape)], axis=-1)

    def project(pose: np.ndarray) -> np.ndarray:
        origin = volume.patient_T_voxel[:3, 3]
        source = torch.from_numpy(np.asarray((pose[:3, 3] - origin) / spacing,
                                             np.float32))[None, None]
        picture = np.empty(rows.shape, np.float32)
        with torch.no_grad():
            for first in range(0, projection.height, _ROWS):
                ends = pose[:3, 3] + rays[first:first + _ROWS].reshape(-1, 3) @ pose[:3, :3].T
                target = torch.from_numpy(np.asarray((ends - origin) / spacing, np.float32))[None]
                found = renderer(voxels, source, target, None)[0, 0].numpy()
                length = np.linalg.norm(ends - pose[:3, 3], axis=1)
                picture[first:first + _ROWS] = (found * length).reshape(-1, projection.width)
        return picture
    return project
