"""Stamped, uncertain poses in one frame tree, and the filter over them."""
