"""One file per node: wiring between topics and stages."""

import os

# One thread for each node: the graph itself is the parallelism on few cores. Numpy's library asks
# for this when it is loaded, so it must be said before.
os.environ.setdefault('OPENBLAS_NUM_THREADS', '1')
