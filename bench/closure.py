"""The loop of ultrasound and X-ray: does it find a probe calibration that is 2 mm wrong?

Each digital patient is registered by two X-rays and by a tracked sweep (see projection.py and
registration.py: tracking and calibrations err by their deviations), once as it is and four times
with a calibration wrong by 2 mm, along x, y, z of the image and in one random direction. The two
registrations alone must notice nothing; the loop must open in these, and stay closed in the first.

Usage: python bench/closure.py [--patients 15] [--first 501]
"""

import argparse
import sys

import numpy as np
from projection import digital, tracked
from registration import bone_of, line, offset, start_at, sweep

from hybrid_guidance.procedure import load_procedure
from hybrid_guidance.registration.closure import close_loop
from hybrid_guidance.registration.projection import register_views
from hybrid_guidance.registration.surface import register_surface
from hybrid_guidance.simulation.anatomy import build_patient


def main() -> int:
    """Run with OpenCV on one core; exit status zero when every bar holds."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--patients', type=int, default=15)
    parser.add_argument('--first', type=int, default=501)
    arguments = parser.parse_args()
    import cv2
    cv2.setNumThreads(1)
    procedure, closed, found = load_procedure('lumbar_facet_injection'), [], []
    cases = digital('lumbar_facet_injection', arguments.first, arguments.patients)
    for seed, case in enumerate(cases, arguments.first):
        random = np.random.default_rng([seed, 0x74])
        xray = register_views(tracked(case.views, random), case.bone,
                              start_at(case.target, offset(random, 0.0, 0.01, 5.0)), case.target)
        patient = build_patient('lumbar', seed, procedure.target)
        bone, any_way = bone_of(procedure, seed), random.normal(size=3)
        wrongs = [None, *0.002 * np.eye(3), 0.002 * any_way / np.linalg.norm(any_way)]
        for wrong in wrongs:
            by_bone = register_surface(sweep(procedure, patient, seed, wrong), bone,
                                       xray.transform, procedure.target, common=0.0003)
            if not by_bone.accepted or not xray.accepted:
                print(seed, wrong, 'not registered:', by_bone.verdict, '|', xray.verdict)
                continue
            loop = close_loop(by_bone, xray)
            (closed if wrong is None else found).append(loop.closed == (wrong is None))
            print(seed, '' if wrong is None else np.round(1e3 * wrong, 1), loop.verdict, flush=True)
    print(f'{len(closed)} right and {len(found)} wrong calibrations compared; all of these '
          'registrations were accepted by themselves')
    print(line('loop opened by a probe 2 mm wrong', float(np.mean(found)), 'share', 0.9))
    print(line('loop closed where nothing is wrong', float(np.mean(closed)), 'share', 0.9))
    return 0 if min(np.mean(found), np.mean(closed)) >= 0.9 else 1


if __name__ == '__main__':
    sys.exit(main())
