"""Where each sensor sits, how well that is known, and until when."""
