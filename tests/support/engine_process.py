"""A live engine process for tests outside tests/engine."""

import signal
import subprocess
import sys
from pathlib import Path

import tinker
from tinker import types

KEY = "tml-test"


class Running:
    """An engine that serves one model under the name ``tiny``."""

    def __init__(self, model: Path, store: Path, *extra: str) -> None:
        command = [sys.executable, "-m", "sota_ml_researcher.engine", "--port", "0", "--dtype", "float32"]
        command += ["--model", f"tiny={model}", "--store", str(store), *extra]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().removeprefix("listening on ").strip()

    def service(self) -> tinker.ServiceClient:
        return tinker.ServiceClient(base_url=self.url, api_key=KEY)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.communicate(timeout=30)


def datum(tokens: list[int]) -> types.Datum:
    """A sequence trained on in full."""
    targets = tokens[1:]
    return types.Datum(
        model_input=types.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={
            "target_tokens": types.TensorData(data=targets, dtype="int64", shape=[len(targets)]),
            "weights": types.TensorData(data=[1.0] * len(targets), dtype="float32", shape=[len(targets)]),
        },
    )
