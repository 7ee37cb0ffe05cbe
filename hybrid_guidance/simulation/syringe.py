"""A syringe on the needle: depots of fluid that grow until they hold what was asked for."""

from hybrid_guidance.geometry.types import Transform


class Syringe:
    """What has been injected.

    Args:
        volume: of every injection, m³.
        rate: m³/s.
    """

    def __init__(self, volume: float, rate: float) -> None:
        self._volume, self._rate = volume, rate
        self._whole: list[tuple[Transform, float]] = []
        self._flowing: tuple[Transform, float] | None = None

    def inject(self, patient_T_needle: Transform, seconds: float) -> None:
        """Begin an injection where the tip is; one under way stays at what it holds."""
        self._whole = self.depots(seconds)
        self._flowing = patient_T_needle, seconds

    def depots(self, seconds: float) -> list[tuple[Transform, float]]:
        """Return where fluid is, (4, 4) in ``patient``, and how much, m³."""
        if self._flowing is None:
            return list(self._whole)
        pose, begun = self._flowing
        return [*self._whole, (pose, min(max(seconds - begun, 0.0) * self._rate, self._volume))]
