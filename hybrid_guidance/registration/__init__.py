"""Where the patient is: point sets and the surface of bone."""
