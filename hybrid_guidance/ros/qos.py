"""Every quality of service of the graph, in one place.

Images are reliable so that any subscriber matches (RViz and rosbag2 ask for reliable by
default), one deep so that nobody works on an old picture.
"""

from rclpy.duration import Duration
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy

IMAGE = QoSProfile(depth=1)
"""Latest image only."""

CAMERA_INFO = QoSProfile(depth=10)
"""Small, and paired with its image by stamp: deep enough never to be the one that is missing."""

OBSERVATION = QoSProfile(depth=10)
"""What was measured or estimated: needles, deviation, clearance."""

SURFACE = QoSProfile(depth=1)
"""Point clouds: latest only."""

STATE = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
"""Latched: whoever comes late gets the last value."""

POINT = QoSProfile(depth=10)
"""Points that somebody clicks: RViz offers them volatile, so latched ones would never arrive."""

COMMAND = QoSProfile(depth=1, lifespan=Duration(seconds=0.5))
"""Poses to go to: an old one is worse than none."""

GROUND_TRUTH = QoSProfile(depth=50)
"""The simulation's own knowledge."""

OVERLAY = QoSProfile(depth=1)
"""Pictures for people."""

RECORD = QoSProfile(depth=50, reliability=ReliabilityPolicy.BEST_EFFORT)
"""Whoever records takes what any publisher offers."""
