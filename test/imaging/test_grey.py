import numpy as np

from hybrid_guidance.imaging.grey import counts_to_grey


def test_xray_counts_are_shown_by_logarithm_with_the_air_left_white() -> None:
    """Equal steps of attenuation are equal steps of grey, however much air is in the image."""
    attenuation = np.repeat(np.array([0.0, 2.0, 2.5, 3.0, 3.5]), 52)[:256]
    counts = np.tile(50000.0 * np.exp(-attenuation), (256, 1)).astype(np.uint16)
    grey = counts_to_grey(counts)[0, 26::52].astype(int)
    assert grey[0] == 255
    assert np.ptp(np.diff(grey[1:])) <= 2
    assert grey[1] - grey[4] > 200


def test_display_is_eight_bit_and_keeps_air_bright() -> None:
    counts = np.full((64, 64), 50000, np.uint16)
    counts[:, :32] = 500
    grey = counts_to_grey(counts)
    assert grey.dtype == np.uint8
    assert grey[0, 60] > grey[0, 4]
