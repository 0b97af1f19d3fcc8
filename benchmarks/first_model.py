"""The first real model, measured: ``demo --model smollm2`` with several seeds, each in a state folder of its own.

usage: python -m benchmarks.first_model [--seeds 0,1,2]

Prints the table of docs/first-model.md. Seconds are from the start of the server to the last verdict, the conversion of
the model's file in them; memory is the highest sum of resident sets of all processes of the run, twice a second.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil

_TASK = [sys.executable, "-m", "sota_ml_researcher", "demo", "--model", "smollm2", "--json"]
_STOP = [sys.executable, "-m", "sota_ml_researcher", "engine", "stop", "--yes"]
_FETCH = [sys.executable, "-m", "sota_ml_researcher", "setup", "--model", "smollm2"]
_COLUMNS = (
    "seed", "load before", "right JSON before", "after SFT", "95% interval of the win rate", "after GRPO",
    "held-out NLL", "SFT s", "GRPO s", "total s", "peak MB",
)  # fmt: skip


def resident_bytes(home: str) -> int:
    """Memory of every process that works in this state folder."""
    total = 0
    for process in psutil.process_iter():
        try:
            if process.environ().get("ML_RESEARCHER_HOME") == home:
                total += process.memory_info().rss
        except psutil.Error:
            continue
    return total


def measure(seed: int, file_home: Path) -> dict[str, Any]:
    """One run from an empty state folder, but for the model's file."""
    with tempfile.TemporaryDirectory() as home:
        environment = {**os.environ, "ML_RESEARCHER_HOME": home}
        (Path(home) / "models").mkdir(mode=0o700)
        for file in (file_home / "models").glob("*.gguf"):
            os.link(file, Path(home) / "models" / file.name)
        peak, ended = 0, threading.Event()

        def watch() -> None:
            nonlocal peak
            while not ended.wait(0.5):
                peak = max(peak, resident_bytes(home))

        load = os.getloadavg()[0]
        watcher = threading.Thread(target=watch)
        watcher.start()
        done = subprocess.run(
            [*_TASK, "--seed", str(seed)], capture_output=True, text=True, env=environment, check=False
        )
        ended.set()
        watcher.join()
        subprocess.run(_STOP, env=environment, capture_output=True, check=False)
        if not done.stdout.strip():
            raise SystemExit(done.stderr)
        return {**json.loads(done.stdout), "load": load, "peak": peak}


def row(found: dict[str, Any]) -> str:
    """The run as a line of the table."""
    low, high = found["judge_interval"]
    cells = [
        found["seed"],
        f"{found['load']:.1f}",
        f"{found['right_before']:.0%}",
        f"{found['right_after']:.0%}",
        f"{low:.3f} to {high:.3f}",
        f"{found['right_after_rewards']:.0%}",
        f"{found['nll_before']:.3f} to {found['nll_after']:.4f}",
        f"{found['seconds']['train sft']:.0f}",
        f"{found['seconds']['train grpo']:.0f}",
        f"{found['seconds']['total']:.0f}",
        f"{found['peak'] / 1e6:.0f}",
    ]
    return "| " + " | ".join(map(str, cells)) + " |"


def main() -> None:
    """Run all seeds, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2")
    seeds = [int(seed) for seed in parser.parse_args().seeds.split(",")]
    with tempfile.TemporaryDirectory() as home:
        subprocess.run(_FETCH, env={**os.environ, "ML_RESEARCHER_HOME": home}, check=True, stdout=sys.stderr)
        print(f"{psutil.cpu_count()} cores, {time.strftime('%Y-%m-%d')}\n")
        print("| " + " | ".join(_COLUMNS) + " |")
        print("|" + "---|" * len(_COLUMNS), flush=True)
        for seed in seeds:
            print(row(measure(seed, Path(home))), flush=True)


if __name__ == "__main__":
    main()
