"""Rigid transforms, projections, the needle, and how uncertainty moves through them."""
