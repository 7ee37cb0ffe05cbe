import numpy as np
import pytest
from wire_phantom import phantom

from hybrid_guidance.calibration.file import CalibrationError
from hybrid_guidance.calibration.wires import WirePhantom, find_spots, match_wires


def slice_pixels(along: float, tilt: tuple[float, float], mirrored: bool) -> np.ndarray:
    """Return where a tilted plane cuts the wires, in px at 0.08 mm."""
    wires = phantom().wires * 1e3
    start, end = wires[..., 0, :], wires[..., 1, :]
    # The plane y = along + tilt · (x - 45, z - 10).
    value_start, value_end = (point[..., 1] - along - tilt[0] * (point[..., 0] - 45)
                              - tilt[1] * (point[..., 2] - 10) for point in (start, end))
    cut = start + (value_start / (value_start - value_end))[..., None] * (end - start)
    u = (cut[..., 0] - 45) * np.hypot(1.0, tilt[0]) / 0.08
    v = (20.0 - cut[..., 2]) * np.hypot(1.0, tilt[1]) / 0.08 + 0.1 * u + 180.0
    return np.stack([410.0 - u if mirrored else 410.0 + u, v], axis=-1)


def image_of(pixels: np.ndarray, seed: int) -> np.ndarray:
    """Draw wires as spots twice as wide as high, with speckle, haze and three false spots."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:616, :820]
    image = 4.0 * random.rayleigh(1.0, rows.shape)
    image += 40.0 * np.exp(-((rows - 590.0) / 8.0)**2)
    false = random.uniform((100, 100), (700, 550), (3, 2))
    for (u, v), height in [*((point, random.uniform(90, 220)) for point in pixels.reshape(-1, 2)),
                           *((point, 70.0) for point in false)]:
        image += height * np.exp(-((columns - u) / 6.0)**2 - ((rows - v) / 3.0)**2)
    return np.clip(image, 0, 255).astype(np.uint8)


@pytest.mark.parametrize('mirrored', [False, True])
def test_wires_are_told_from_clutter_and_the_phantom_from_its_mirror_image(mirrored: bool) -> None:
    for seed, (along, tilt) in enumerate(((20.0, (0.0, 0.0)), (14.0, (0.12, -0.1)),
                                          (27.0, (-0.1, 0.15)))):
        truth = slice_pixels(along, tilt, mirrored)
        match = match_wires(find_spots(image_of(truth, seed)), phantom())
        assert match is not None
        assert match.flip == (mirrored, False)
        np.testing.assert_allclose(match.pixels, truth, atol=1.0)


def test_a_hidden_outer_wire_is_no_match_but_for_clutter_it_would_take() -> None:
    truth = slice_pixels(20.0, (0.0, 0.0), False)
    truth[0, 2] = truth[0, 1] + [2.0, 0.0]
    match = match_wires(find_spots(image_of(truth, 9)), phantom())
    assert match is None


def test_crossings_lie_on_the_slice() -> None:
    """Independent: the spots are cut from the wires, and must be found back along them."""
    for along, tilt in ((20.0, (0.0, 0.0)), (12.0, (0.1, 0.2))):
        pixels = slice_pixels(along, tilt, False)
        width = pixels[:, 2] - pixels[:, 0]
        fraction = np.sum((pixels[:, 1] - pixels[:, 0]) * width, axis=1) / np.sum(width**2, axis=1)
        x, y, z = phantom().crossings(fraction).T * 1e3
        np.testing.assert_allclose(y, along + tilt[0] * (x - 45) + tilt[1] * (z - 10), atol=1e-6)


def test_a_phantom_whose_outer_wires_are_not_parallel_is_refused() -> None:
    wires = phantom().wires.copy()
    wires[1, 0, 1, 0] += 5e-3
    with pytest.raises(CalibrationError, match='parallel'):
        WirePhantom(wires, phantom().names)
