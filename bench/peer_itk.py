"""ITK's intensity-based 2D/3D registration on pairs that another benchmark has written.

Ray casting (RayCastInterpolateImageFunction, above 100 HU) and normalised correlation of ITK 5, as
in its example IntensityBased2D3DRegistration, summed over the views; Powell's method of SciPy, at
4 and then at 2 mm. Needs a Python with itk and scipy; prints one JSON line for each start.

Usage: python peer_itk.py PAIRS.npz
"""

import json
import sys
import time

import itk
import numpy as np
from scipy.ndimage import zoom
from scipy.optimize import minimize

VOLUME = itk.Image[itk.F, 3]


def placed(values, origin, spacing, rotation):
    """Return an ITK image of a (Z, Y, X) array, mm."""
    image = itk.image_from_array(np.ascontiguousarray(values, np.float32))
    image.SetOrigin([float(value) for value in origin])
    image.SetSpacing([float(value) for value in spacing])
    image.SetDirection(itk.matrix_from_array(np.ascontiguousarray(rotation)))
    return image


def metric_of(ct, view, edge):
    """Return a metric of one X-ray and the transform that it reads, at a pixel size in mm."""
    integral, focal, centre, pose = view
    step = max(round(edge * focal / pose[3]), 1)
    rows, columns = (count // step * step for count in integral.shape)
    blocks = integral[:rows, :columns].reshape(rows // step, step, columns // step, step)
    small = blocks.mean((1, 3))
    # The detector one metre from the source; its pixels in the room, mm.
    turn, source = pose[0], pose[1]
    pixel = 1000.0 / focal
    first = np.array([*((0.5 * step - 0.5 - centre) * pixel), 1000.0])
    fixed = placed(small[None], turn @ first + source, [step * pixel, step * pixel, 1.0], turn)
    transform = itk.Euler3DTransform[itk.D].New()
    transform.SetCenter([float(value) for value in pose[2]])
    interpolator = itk.RayCastInterpolateImageFunction[VOLUME, itk.D].New()
    interpolator.SetTransform(transform)
    interpolator.SetFocalPoint([float(value) for value in source])
    interpolator.SetThreshold(100.0)
    interpolator.SetInputImage(ct)
    metric = itk.NormalizedCorrelationImageToImageMetric[VOLUME, VOLUME].New()
    metric.SetFixedImage(fixed)
    metric.SetMovingImage(ct)
    metric.SetTransform(transform)
    metric.SetInterpolator(interpolator)
    # 45 mm about the target: over all of the image the outline of the body would decide.
    local = turn.T @ (pose[2] - source)
    middle = ((local[:2] / local[2] * focal + centre) / step).astype(int)
    reach = int(45.0 * focal / pose[3] / step)
    first, last = (np.clip(middle + side * reach, 0, small.shape[::-1]) for side in (-1, 1))
    region = itk.ImageRegion[3]()
    region.SetIndex([int(first[0]), int(first[1]), 0])
    region.SetSize([int(last[0] - first[0]), int(last[1] - first[1]), 1])
    metric.SetFixedImageRegion(region)
    metric.SetSubtractMean(True)
    metric.Initialize()
    return metric, (transform, interpolator, fixed)


def main() -> int:
    """Register every start; the truth is the identity."""
    itk.MultiThreaderBase.SetGlobalDefaultNumberOfThreads(1)
    pairs = np.load(sys.argv[1])
    target, views = 1e3 * pairs['target'], []
    for number in range(int(pairs['views'])):
        pose = pairs[f'pose{number}']
        source = 1e3 * pose[:3, 3]
        depth = float((target - source) @ pose[:3, 2])
        views.append((pairs[f'integral{number}'], float(pairs[f'focal{number}'][0]),
                      pairs[f'centre{number}'], (pose[:3, :3], source, target, depth)))
    cts = {}
    for edge in (4.0, 2.0):
        scale = 1e3 * pairs['spacing'] / edge
        values = zoom(pairs['volume'].astype(np.float32), scale[::-1], order=1, grid_mode=True,
                      mode='nearest')
        shift = 1e3 * pairs['origin'] - 0.5e3 * pairs['spacing'] + 0.5 * edge
        cts[edge] = placed(values, shift, [edge] * 3, np.eye(3))
    for start in pairs['starts']:
        begun, parameters = time.process_time(), np.array(start, float)
        for edge in (4.0, 2.0):
            metrics = [metric_of(cts[edge], view, edge) for view in views]

            def cost(vector, metrics=metrics):
                values = itk.OptimizerParameters[itk.D](6)
                for index in range(6):
                    values[index] = float(vector[index] * (0.02 if index < 3 else 1.0))
                return sum(metric.GetValue(values) for metric, _ in metrics)

            unit = np.array([0.02] * 3 + [1.0] * 3)
            found = minimize(cost, parameters / unit, method='Powell', options={
                'xtol': 0.05, 'ftol': 1e-5, 'maxfev': 400,
                'direc': np.eye(6) * (4.0 if edge > 3.0 else 1.0)})
            parameters = found.x * unit
        print(json.dumps({'parameters': list(parameters), 'cost': float(found.fun),
                          'seconds': time.process_time() - begun}), flush=True)
    return 0


if __name__ == '__main__':
    sys.exit(main())
