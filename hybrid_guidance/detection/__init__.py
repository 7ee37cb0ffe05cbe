"""Needles found in single images, with a covariance from the image itself."""
