"""``python -m sota_ml_researcher.engine`` is the same as ``ml-researcher engine``."""

import os
import sys

# Read by OpenMP when torch loads it. Threads that wait by spinning make a step of a small model a hundred times
# slower as soon as anything else wants the processor (measured: 46 s instead of 1.8 s for 40 steps of the demo model
# beside a second engine on two cores); waiting passively costs a few percent when the machine is idle.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

from sota_ml_researcher.engine.cli import main

sys.exit(main())
