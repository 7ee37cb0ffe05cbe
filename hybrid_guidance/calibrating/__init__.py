"""What ``hybrid-guidance calibrate`` does, kind by kind."""
