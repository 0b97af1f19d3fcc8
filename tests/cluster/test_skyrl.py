"""Jobs on a real SkyRL server: ``make cluster SKYRL_PYTHON=PATH/bin/python`` (see docs/clusters.md)."""

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from job_helpers import ended, wait_until
from safetensors.torch import load_file, save_file
from tool_calls import call

from sota_ml_researcher.backends.server_probe import forget_servers
from sota_ml_researcher.core.files import read_json_lines
from sota_ml_researcher.jobs import run_files
from sota_ml_researcher.jobs.states import Job, JobState
from sota_ml_researcher.models.model_ref import resolve_model

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(1800),
    pytest.mark.skipif("SKYRL_PYTHON" not in os.environ, reason="SKYRL_PYTHON names no Python that has SkyRL"),
]

SCRIPT = Path(__file__).parents[2] / "scripts" / "skyrl_server.sh"
_START_S = 240.0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model in float32: JAX on a processor multiplies nothing smaller."""
    source, folder = resolve_model("demo").path, tmp_path_factory.mktemp("demo32")
    assert source is not None
    for file in source.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    weights = load_file(source / "model.safetensors")
    save_file({name: w.float() for name, w in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "float32"}))
    return folder


@dataclass
class Running:
    """A server under a port of its own."""

    command: list[str]
    url: str
    log: Path
    process: subprocess.Popen[bytes]

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log)
        with httpx2.Client(timeout=5) as client:
            for _ in range(int(_START_S)):
                assert self.process.poll() is None, self.log.read_text()[-2000:]
                try:
                    if client.get(f"{self.url}/api/v1/healthz").status_code == 200:
                        return
                except httpx2.HTTPError:
                    pass
                time.sleep(1.0)
        raise AssertionError(self.log.read_text()[-2000:])

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)


@pytest.fixture(scope="module")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Generator[Running]:
    python = os.environ["SKYRL_PYTHON"]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [str(SCRIPT), python, str(model), str(port)]
    log = tmp_path_factory.mktemp("skyrl") / "log.txt"
    running = Running(command, f"http://127.0.0.1:{port}", log, subprocess.Popen(["true"]))
    running.start()
    forget_servers()
    yield running
    running.stop()


def run(tool: str, server: Running, model: Path, **changes: Any) -> tuple[Job, list[Mapping[str, Any]]]:
    """A job from its start to its end, and its metrics."""
    place = {"base_model": str(model), "backend": "cluster", "base_url": server.url, "lora_rank": 8}
    failed, text, content = call(tool, overrides={**place, **changes})
    assert not failed, text
    job = wait_until(content["job_id"], ended)
    return job, list(read_json_lines(job.folder / run_files.METRICS))


def succeeded(job: Job) -> None:
    assert job.state is JobState.SUCCEEDED, job.error


SFT = {"train_file": "demo:sft_train", "batch_size": 8, "learning_rate": 3e-4}


def test_the_server_is_told_by_what_it_answers(server: Running, model: Path) -> None:
    failed, text, content = call("list_models", backend="cluster", base_url=server.url)
    assert not failed
    assert "SkyRL" in text
    assert "(averaged)" in text
    assert [m["name"] for m in content["models"]] == [str(model)]


def test_a_base_model_is_sampled(server: Running, model: Path) -> None:
    failed, text, content = call(
        "sample_model", model=str(model), prompts=["3+4="], backend="cluster", base_url=server.url, max_tokens=8
    )
    assert not failed, text
    assert content["samples"][0]["completions"][0]["tokens"] >= 1


def test_supervised_training_lowers_the_loss_and_its_checkpoint_goes_everywhere(
    server: Running, model: Path, tmp_path: Path
) -> None:
    job, metrics = run("start_sft", server, model, **SFT, val_file="demo:sft_val", num_steps=6, eval_every=0)
    succeeded(job)
    losses = [m["train_mean_nll"] for m in metrics if "train_mean_nll" in m]
    assert losses[-1] < losses[0] - 0.2
    assert "apply_to: [mlp, attn]" in (job.folder / "config.yaml").read_text().replace("\n- ", " ").replace('"', "")
    assert any("averages losses" in alert.message for alert in run_files.alerts(job.folder))
    failed, text, _ = call("sample_model", model=job.id, prompts=["reverse ab"], max_tokens=8)
    assert not failed, text
    failed, text, _ = call("export_checkpoint", model=job.id, output_dir=str(tmp_path / "adapter"))
    assert not failed, text
    adapter = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert sum(t.numel() for t in adapter.values()) == 77_824, "mlp and attn at rank 8, as the plan counts"
    assert any(bool(torch.any(t != 0)) for name, t in adapter.items() if "lora_B" in name)
    failed, text, content = call("manage_checkpoints", backend="cluster", base_url=server.url)
    assert not failed, text
    assert any(checkpoint["path"].endswith("/weights/final") for checkpoint in content["checkpoints"])


def test_a_resumed_job_goes_on_where_it_stopped(server: Running, model: Path) -> None:
    place = {"base_model": str(model), "backend": "cluster", "base_url": server.url, "lora_rank": 8}
    changes = {**SFT, "num_steps": 40, "checkpoint_every": 2, "eval_every": 0}
    failed, text, content = call("start_sft", overrides={**place, **changes})
    assert not failed, text
    job = wait_until(content["job_id"], lambda j: ended(j) or j.step >= 4)
    assert not call("cancel_job", job_id=job.id)[0]
    stopped = wait_until(job.id, ended)
    assert 4 <= stopped.step < 40
    assert not call("resume_job", job_id=job.id)[0]
    job = wait_until(job.id, lambda j: ended(j) and j.attempt == 2)
    succeeded(job)
    steps = [m["step"] for m in read_json_lines(job.folder / run_files.METRICS) if "train_mean_nll" in m]
    assert steps == list(range(40))


def test_preferences_are_learned(server: Running, model: Path) -> None:
    data = {"train_file": "demo:dpo_train", "val_file": "demo:dpo_val"}
    job, metrics = run("start_dpo", server, model, **data, num_steps=4, batch_size=4, learning_rate=5e-4, eval_every=0)
    succeeded(job)
    assert metrics[0]["dpo_loss"] == pytest.approx(0.6931, abs=1e-3), "reference and policy are the same model"
    assert metrics[-1]["test/dpo_loss"] < 0.6
    assert metrics[-1]["test/accuracy"] > 0.9


def test_rewards_are_learned_from(server: Running, model: Path) -> None:
    job, metrics = run(
        "start_grpo",
        server,
        model,
        train_file="demo:say_train",
        reward_type="exact",
        num_steps=2,
        batch_size=4,
        group_size=4,
        max_response_tokens=8,
        learning_rate=1e-4,
        force=True,
    )
    succeeded(job)
    trained = [m for m in metrics if "optim/kl_sample_train_v1" in m]
    assert trained, "no group had more than one reward"
    assert all(abs(m["optim/kl_sample_train_v1"]) < 1e-4 for m in trained), "sampler and trainer agree"


def test_a_server_that_is_restarted_ends_the_job_with_a_sentence(server: Running, model: Path) -> None:
    place = {"base_model": str(model), "backend": "cluster", "base_url": server.url, "lora_rank": 8}
    failed, text, content = call("start_sft", overrides={**place, **SFT, "num_steps": 2000, "checkpoint_every": 2})
    assert not failed, text
    wait_until(content["job_id"], lambda j: ended(j) or j.step >= 3)
    server.stop()
    server.start()
    job = wait_until(content["job_id"], ended)
    assert job.state is JobState.FAILED
    assert "Traceback" not in (job.error or "")
    assert job.error
