"""``python -m sota_ml_researcher.engine`` is the same as ``ml-researcher engine``."""

import os
import sys

# Read by OpenMP when torch loads it. By default idle workers spin for milliseconds, which made 40 steps of the demo
# model take 46 s instead of 1.8 s beside a second engine on two cores. Workers that sleep at once make sampling slow on
# an idle machine: 3.9 s a batch, against 2.5 to 2.9 s with this short watch (which costs 6.7 s instead of 4.7 s where
# another program takes one of the cores; the default 10.2 s).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "4000")

# Read by glibc when a process begins, so that this one begins again: weights in pages of 2 MB, where the kernel leaves
# that to each program, took 3 to 6% off a GRPO step. Other systems ignore it.
_TUNABLE = "glibc.malloc.hugetlb"
_tunables = os.environ.get("GLIBC_TUNABLES", "")
if sys.platform == "linux" and _TUNABLE not in _tunables:
    os.environ["GLIBC_TUNABLES"] = ":".join(filter(None, [_tunables, f"{_TUNABLE}=1"]))
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])

from .main import main  # noqa: E402  # what it imports reads these variables

sys.exit(main())
