"""The loop of two registrations: closes by chance as often as it says, opens where one is off."""

from dataclasses import replace

import numpy as np
import pytest

from hybrid_guidance.geometry.rigid import perturbed, rotation_from_vector, transform
from hybrid_guidance.registration.closure import close_loop
from hybrid_guidance.registration.result import Registration, RegistrationError

TARGET = np.array([0.03, 0.05, -0.02])
TRUTH = transform(rotation_from_vector(np.array([0.4, -0.2, 0.7])), np.array([0.2, 0.1, 0.3]))
ULTRASOUND = np.diag([0.4e-3, 0.5e-3, 0.3e-3, 0.004, 0.003, 0.004]) ** 2
XRAY = np.diag([0.2e-3, 0.2e-3, 0.9e-3, 0.002, 0.002, 0.001]) ** 2


def drawn(random: np.random.Generator, covariance: np.ndarray, shift=0.0) -> Registration:
    offset = random.multivariate_normal(np.zeros(6), covariance)
    offset[:3] += shift
    return Registration(perturbed(TRUTH, offset), covariance, TARGET, 0.0, 1.0)


def test_registrations_that_err_as_they_say_close_in_all_but_one_of_fifty() -> None:
    random = np.random.default_rng(5)
    closed = [close_loop(drawn(random, ULTRASOUND), drawn(random, XRAY)).closed
              for _ in range(1000)]
    assert 0.965 < np.mean(closed) < 0.99


def test_a_shift_of_three_millimetres_opens_the_loop_and_is_measured() -> None:
    random, shift = np.random.default_rng(6), np.array([0.0021, -0.0021, 0.0])
    loops = [close_loop(drawn(random, ULTRASOUND, shift), drawn(random, XRAY)) for _ in range(200)]
    assert np.mean([loop.closed for loop in loops]) < 0.05
    assert np.allclose(np.mean([loop.gap for loop in loops], axis=0), shift, atol=2e-4)
    assert 'calibrate the probe' in next(loop for loop in loops if not loop.closed).verdict


def test_registrations_that_cannot_be_compared_are_named() -> None:
    random = np.random.default_rng(7)
    good = drawn(random, XRAY)
    with pytest.raises(RegistrationError, match='different targets'):
        close_loop(good, replace(good, target=TARGET + 0.01))
    with pytest.raises(RegistrationError, match='X-ray was refused: blurred'):
        close_loop(good, replace(good, reasons=('blurred',)))
