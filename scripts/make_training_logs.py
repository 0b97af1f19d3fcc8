"""Train the demo model for real, soundly and with planted faults, and keep the logs under ``tests/analysis/logs``.

``python scripts/make_training_logs.py trl|torch|jobs [--out DIR] [--only WORDS]``. ``trl`` trains with TRL (the
``bench`` extra), ``torch`` with a plain loop that takes less time and logs as TRL does, ``jobs`` through this server's
own tools on the embedded engine. Every run is drawn from its name and seed: task, length, batch, schedule, how often
it logs and validates. Seeds below `FIRST_HELD_OUT` are those the thresholds of the findings were set on; the others
were not looked at. Logs that exist are not made again.
"""

from __future__ import annotations

import argparse
import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path

    "trl": (run_trl, FAULTS, HEALTHY),
    "torch": (
        run_torch,
        {m: f for m, f in FAULTS.items() if m != "rl"},
        {m: n for m, n in HEALTHY.items() if m != "rl"},
    ),
    "jobs": (run_job, JOB_FAULTS, JOB_HEALTHY),
}


def specs(source: str) -> Iterator[Spec]:
    """Runs of both halves in turn, a fault and a healthy run alternately: any part of the list is a fair sample."""
    _, faults, sound = MAKERS[source]
    halves = (0, FIRST_HELD_OUT)
    faulty = [
        Spec(source, method, fault, half + turn)
        for turn in range(2 if source == "torch" else 1)
        for fault in dict.fromkeys(f for own in faults.values() for f in own)
        for method in faults
        if fault in faults[method]
        for half in halves
    ]
    healthy = [
        Spec(source, method, "healthy", half + turn)
        for turn in range(max(sound.values()))
        for method, runs in sound.items()
        if turn < runs
        for half in halves
    ]
    for pair in itertools.zip_longest(faulty, healthy):
        yield from (spec for spec in pair if spec is not None)


def main() -> int:
    """Make the runs that are asked for and not there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("source", choices=list(MAKERS))
    parser.add_argument("--out", type=Path, default=LOGS)
    parser.add_argument("--only", nargs="*", default=[""], help="make only runs whose name holds one of these words")
    parser.add_argument("--limit", type=int, default=10_000)
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    made = 0
    for spec in specs(arguments.source):
        chosen = any(word in spec.name for word in arguments.only) and made < arguments.limit
        if not chosen or (arguments.out / spec.name).exists():
            continue
        MAKERS[arguments.source][0](spec, arguments.out)
        made += 1
        print(spec.name, flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
