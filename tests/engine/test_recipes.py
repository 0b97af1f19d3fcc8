"""The cookbook's recipes, unmodified, on a live engine."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["sl_loop", "rl_loop", "sl_basic", "rl_basic", "dpo", "shorter", "rlhf"])
def test_a_cookbook_recipe_runs_unmodified(recipe: str) -> None:
    command = [sys.executable, "-m", "benchmarks.recipes", "--only", recipe]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=800, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(next(line for line in done.stdout.splitlines() if line.startswith('{"recipe"')))
    assert result["records"] >= 2
    assert result["checkpoints"] >= 1
