"""One file per node: wiring between topics and stages."""
