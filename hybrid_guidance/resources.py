"""Where the package's own configuration files are, in a checkout or installed."""

import os
import sys
from pathlib import Path


def resource(relative: str) -> Path:
    """Return the path of a file or folder such as ``config/procedures``.

    Looks beside the package (a checkout), then in ``share/hybrid_guidance`` of every prefix
    that a ROS 2 installation or a virtual environment names.

    Raises:
        FileNotFoundError: nowhere; the message lists the places.
    """
    prefixes = [*os.environ.get('AMENT_PREFIX_PATH', '').split(os.pathsep), sys.prefix]
    roots = [Path(__file__).resolve().parent.parent,
             *(Path(prefix) / 'share' / 'hybrid_guidance' for prefix in prefixes if prefix)]
    for root in roots:
        if (root / relative).exists():
            return root / relative
    places = ', '.join(str(root) for root in roots)
    raise FileNotFoundError(f'{relative}: not found in {places}; install the package again')
