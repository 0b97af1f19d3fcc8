"""What the server loads before it answers. How long that takes is measured by benchmarks/cold_start.py."""

import subprocess
import sys

HEAVY = {"torch", "transformers", "tinker", "tinker_cookbook", "scipy", "matplotlib", "datasets", "pyarrow", "rich"}
SHOW = "import sys; from sota_ml_researcher.server.app import build_server; build_server(); print(*sys.modules)"


def test_the_server_starts_without_a_heavy_package() -> None:
    done = subprocess.run([sys.executable, "-c", SHOW], capture_output=True, text=True, check=True)
    assert HEAVY & set(done.stdout.split()) == set()
