"""Images with their acquisition time and projection, and where they come from."""
