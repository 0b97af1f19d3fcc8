"""``python -m sota_ml_researcher.engine`` is the same as ``ml-researcher engine``."""

import os
import sys

# Read by OpenMP when torch loads it. By default idle workers spin for milliseconds, which made 40 steps of the demo
# model take 46 s instead of 1.8 s beside a second engine on two cores. Workers that sleep at once make sampling slow on
# an idle machine: 3.9 s a batch, against 2.5 to 2.9 s with this short watch (which costs 6.7 s instead of 4.7 s where
# another program takes one of the cores; the default 10.2 s).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "4000")

from sota_ml_researcher.engine.cli import main

sys.exit(main())
