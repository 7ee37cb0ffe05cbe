import cv2
import numpy as np

from hybrid_guidance.imaging.geometry import CameraGeometry

CAMERA = CameraGeometry((900.0, 880.0), (250.0, 262.0), (-0.2, 0.05, 0.002, -0.001, 0.0),
                        (512, 512))
MATRIX = np.array([[900.0, 0.0, 250.0], [0.0, 880.0, 262.0], [0.0, 0.0, 1.0]])


def test_undistorted_spots_lie_where_the_projection_puts_their_points() -> None:
    """Spots are drawn where OpenCV's own lens model puts them."""
    random = np.random.default_rng(3)
    for point in np.column_stack([random.uniform(-0.2, 0.2, (8, 2)), np.ones(8)]):
        (u, v), = cv2.projectPoints(point[None], np.zeros(3), np.zeros(3), MATRIX,
                                    np.array(CAMERA.distortion))[0].reshape(-1, 2)
        rows, columns = np.mgrid[:512, :512]
        spot = 1000.0 * np.exp(-0.5 * ((columns - u)**2 + (rows - v)**2) / 2.0**2)
        image = CAMERA.undistorted(spot.astype(np.uint16)).astype(float)
        found = np.array([(image * columns).sum(), (image * rows).sum()]) / image.sum()
        assert np.allclose(found, CAMERA.projection().pixels(point), atol=0.1)


def test_without_distortion_the_image_stays_itself() -> None:
    image = np.zeros((512, 512), np.uint8)
    straight = CameraGeometry((900.0, 880.0), (250.0, 262.0), (0.0,) * 5, (512, 512))
    assert straight.undistorted(image) is image
