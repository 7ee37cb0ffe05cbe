"""A registration as the calibration file keeps it: ``world -> patient``."""

from datetime import datetime

from hybrid_guidance.calibration.file import KINDS, Calibration
from hybrid_guidance.registration.projection import ProjectionRegistration
from hybrid_guidance.registration.result import Registration, RegistrationError
from hybrid_guidance.registration.surface import SurfaceRegistration


def entry_of(found: Registration, now: datetime, expires: datetime) -> Calibration:
    """Return the entry of a registration of the CT (``patient``) in the room (``world``).

    Raises:
        RegistrationError: it was refused: only a good one may be kept.
    """
    if not found.accepted:
        raise RegistrationError(f'the registration was {found.verdict}')
    parent, child = KINDS['registration']
    way, samples, inliers, residual = 'points', None, None, None
    if isinstance(found, SurfaceRegistration):
        way, samples = 'ultrasound on CT', found.count
        inliers, residual = round(found.fitting * found.count), found.residual
    elif isinstance(found, ProjectionRegistration):
        way, samples = 'X-ray on CT', len(found.likeness)
    return Calibration(
        kind='registration', parent=parent, child=child, transform=found.transform,
        covariance=found.covariance, method=f'{way}: {found.verdict}', date=now,
        expires=expires, samples=samples, inliers=inliers, residual=residual,
        held_out_error=None, made_by='hybrid-guidance register')
