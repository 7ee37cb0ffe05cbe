"""What must stand in the environment before rclpy starts, so that no user has to know it."""

import os

from hybrid_guidance.resources import resource


def prepare(environment: dict[str, str] | None = None) -> None:
    """Choose the DDS transport that carries whole images, unless the user chose one.

    Read by Fast DDS only; Cyclone DDS and Zenoh carry images as they are.

    Args:
        environment: changed in place; this process's own when not given.
    """
    target = os.environ if environment is None else environment
    chosen = ('FASTDDS_DEFAULT_PROFILES_FILE', 'FASTRTPS_DEFAULT_PROFILES_FILE',
              'FASTDDS_BUILTIN_TRANSPORTS')
    if not any(name in target for name in chosen):
        target['FASTDDS_DEFAULT_PROFILES_FILE'] = str(resource('config/fastdds.xml'))
