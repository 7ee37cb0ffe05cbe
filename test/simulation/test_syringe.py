"""A syringe: conserved volume, at its rate."""

import numpy as np
import pytest

from hybrid_guidance.geometry.rigid import transform
from hybrid_guidance.simulation.syringe import Syringe


def test_a_depot_grows_at_the_rate_until_it_holds_the_volume() -> None:
    syringe = Syringe(3e-6, 0.5e-6)
    assert syringe.depots(5.0) == []
    syringe.inject(np.eye(4), 10.0)
    assert [volume for _, volume in syringe.depots(12.0)] == [pytest.approx(1e-6)]
    assert [volume for _, volume in syringe.depots(60.0)] == [pytest.approx(3e-6)]


def test_a_second_injection_leaves_the_first_at_what_it_holds() -> None:
    syringe, place = Syringe(3e-6, 0.5e-6), transform(translation=np.array([0.01, 0.0, 0.0]))
    syringe.inject(np.eye(4), 0.0)
    syringe.inject(place, 2.0)
    (_, first), (where, second) = syringe.depots(3.0)
    assert first == pytest.approx(1e-6)
    assert second == pytest.approx(0.5e-6)
    assert where is place
