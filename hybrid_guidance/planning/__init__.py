"""From a target to the next needle pose."""
