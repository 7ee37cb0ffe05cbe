"""Where the patient is: point sets, the surface of bone, X-rays on a CT."""
