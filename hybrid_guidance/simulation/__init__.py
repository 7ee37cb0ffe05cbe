"""The digital patient: one ground truth that feeds both images."""
