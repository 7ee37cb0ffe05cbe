"""What every test may use: a ROS domain of its own, and where real recordings are."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# Nothing that a test publishes leaves this machine, and no two test runs hear each other.
os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'
os.environ['ROS_DOMAIN_ID'] = str(1 + os.getpid() % 100)

RECORDINGS = Path(__file__).resolve().parents[2] / 'shared' / 'data' / 'plus'


@pytest.fixture(scope='session')
def recordings() -> Path:
    """Folder of PLUS's tracked ultrasound recordings, which are not part of the project."""
    if not RECORDINGS.is_dir():
        pytest.skip(f'no recordings in {RECORDINGS}')
    return RECORDINGS


@pytest.fixture
def ros() -> Iterator[None]:
    """An initialised rclpy, with the transport that the nodes use."""
    import rclpy

    from hybrid_guidance.ros import environment

    environment.prepare()
    rclpy.init()
    yield
    rclpy.try_shutdown()
