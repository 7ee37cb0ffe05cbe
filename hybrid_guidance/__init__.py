"""Fluoroscopy and ultrasound guidance of a needle, as a ROS 2 node graph."""

__version__ = '0.1.0'
