"""One file per node: wiring between topics and stages."""

import os
import signal

from hybrid_guidance.supervisor import PARENT

# One thread for each node: the graph itself is the parallelism on few cores. Numpy's library asks
# for this when it is loaded, so it must be said before.
os.environ.setdefault('OPENBLAS_NUM_THREADS', '1')

# A node that is told to stop while it still loads its libraries ends without a trace of where it
# was; ``ros.node.run`` takes over from here.
if PARENT in os.environ:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
