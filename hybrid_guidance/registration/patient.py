"""Where the patient of a CT lies, by whatever has been seen of it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from hybrid_guidance.geometry.types import Points, Transform
from hybrid_guidance.procedure import load_procedure
from hybrid_guidance.registration.closure import close_loop
from hybrid_guidance.registration.ct import REACH, Scan, named_scan
from hybrid_guidance.registration.projection import register_views
from hybrid_guidance.registration.result import Registration, RegistrationError
from hybrid_guidance.registration.surface import Glimpse, register_surface, swept
from hybrid_guidance.registration.view import View

_XRAY_REACH = 0.11


@dataclass(frozen=True)
class Job:
    """What is known of a patient.

    Attributes:
        ct: for ``named_scan``.
        procedure: its name or file: the target, and the region of a simulated patient.
        seed: of a simulated patient.
        start: (4, 4) ``world_T_patient`` so far.
        glimpses: of bone in ultrasound, in ``world``.
        views: X-rays, in ``world``.
    """

    ct: str
    procedure: str
    seed: int
    start: Transform
    glimpses: tuple[Glimpse, ...] = ()
    views: tuple[View, ...] = ()


@dataclass(frozen=True)
class Answer:
    """What became of it.

    Attributes:
        words: for the operator.
        found: the registration to use from now on; None where all stays as it is.
    """

    words: str
    found: Registration | None = None


def register_patient(job: Job) -> Answer:
    """Register by ultrasound, by X-rays, or by both, which must agree then."""
    procedure = load_procedure(job.procedure)
    scan = named_scan(job.ct, procedure, job.seed)
    results: dict[str, Registration] = {}
    unseen = []
    for way, register in (('ultrasound', _by_ultrasound), ('X-ray', _by_xray)):
        best = _best(results)
        from_here = job if best is None else replace(job, start=best.transform)
        try:
            results[way] = register(from_here, scan, procedure.target)
        except RegistrationError as error:
            unseen.append(f'{way}: {error}')
    words = '; '.join([*(f'by {way} {each.verdict}' for way, each in results.items()), *unseen])
    best = _best(results)
    if best is None:
        return Answer(f'refused, the patient stays where it was: {words}')
    if all(each.holds for each in results.values()) and len(results) == 2:
        loop = close_loop(results['ultrasound'], results['X-ray'])
        words += f'; {loop.verdict}'
        if not loop.closed:
            return Answer(f'refused, the patient stays where it was: {words}')
    return Answer(words, best)


def _best(results: Mapping[str, Registration]) -> Registration | None:
    accepted = [each for each in results.values() if each.accepted]
    return min(accepted, key=lambda each: each.target_error, default=None)


def _by_ultrasound(job: Job, scan: Scan, target: Points) -> Registration:
    cloud = swept(job.glimpses)
    return register_surface(cloud, scan.near(target, REACH).surface(), job.start, target)


def _by_xray(job: Job, scan: Scan, target: Points) -> Registration:
    if not job.views:
        raise RegistrationError('no X-ray')
    return register_views(job.views, scan.near(target, _XRAY_REACH).bone(), job.start, target)
