"""From a config to a finished job by commands alone, on the embedded engine."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from job_helpers import ended, settings, wait_until
from terminal_calls import json_of, typed

from sota_ml_researcher.jobs.registry import Registry
from sota_ml_researcher.jobs.states import JobState

pytestmark = pytest.mark.usefixtures("shared_engine")
ML = [sys.executable, "-m", "sota_ml_researcher"]


@pytest.fixture
def config(tmp_path: Path, tiny_weights: Path) -> str:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(settings(tmp_path, tiny_weights, num_steps=3, eval_every=0, checkpoint_every=0)))
    return str(path)


def test_a_template_is_run_followed_sampled_exported_and_removed(tmp_path: Path) -> None:
    short = ("num_epochs=null", "num_steps=2", "batch_size=4", "val_file=null")
    result = typed("run", "template://sft", *short, "--yes", "--follow")
    assert result.exit_code == 0, result.output
    (job,) = Registry().find()
    lines = result.stdout.splitlines()
    assert f"{job.id} succeeded: step 2/2" in "\n".join(lines)
    assert job.state is JobState.SUCCEEDED and job.total_steps == 2
    assert json_of("engine", "status")["running"]
    assert len(json_of("sample", f"{job.id}:final", "-p", "1 plus 1?", "--max-tokens", "2")["samples"]) == 1
    exported = json_of("export", job.id, "--output-dir", str(tmp_path / "adapter"))
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file() and exported["done"]
    stored = {row["path"] for row in json_of("checkpoints") if row["job_id"] == job.id}
    assert len(stored) >= 2
    assert json_of("rm", job.id, "--yes")["checkpoints_deleted"] == len(stored)
    assert not stored & {row["path"] for row in json_of("checkpoints")}


def test_a_followed_job_that_fails_ends_with_1(config: str, tiny_weights: Path) -> None:
    started = json_of("run", config, "num_steps=100000", "--yes")
    assert typed("jobs", started["job_id"], "--kill").exit_code == 0
    job = wait_until(started["job_id"], ended)
    assert typed("jobs", job.id, "--follow").exit_code == 1
    assert json_of("jobs", "--state", "cancelled")["jobs"][0]["job_id"] == job.id


@pytest.mark.skipif(os.name != "posix", reason="Ctrl-C is a signal of POSIX")
@pytest.mark.parametrize("follow", [["jobs", "--follow"], ["logs", "-f"]])
def test_ctrl_c_ends_following_and_not_the_job(config: str, follow: list[str]) -> None:
    job_id = json_of("run", config, "num_steps=100000", "--yes")["job_id"]
    wait_until(job_id, lambda job: job.step > 0)
    command = [*ML, follow[0], job_id, *follow[1:]]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as following:
        assert following.stdout is not None and following.stdout.readline()
        following.send_signal(signal.SIGINT)
        _, said = following.communicate()
    assert following.returncode == 130
    assert f"{job_id} goes on" in said and "Traceback" not in said
    job = Registry().get(job_id)
    assert job.state is JobState.RUNNING
    assert f"{job_id}: cancelled" in typed("jobs", job_id, "--kill").stdout


@pytest.mark.skipif(os.name != "posix", reason="pseudo-terminals are POSIX's")
@pytest.mark.parametrize(("said", "code", "jobs"), [("n\n", 1, 0), ("y\n", 0, 1)])
def test_at_a_terminal_it_asks(config: str, said: str, code: int, jobs: int) -> None:
    ours, theirs = os.openpty()
    with subprocess.Popen([*ML, "run", config], stdin=theirs, stdout=subprocess.PIPE, text=True) as asking:
        os.close(theirs)
        os.write(ours, said.encode())
        shown, _ = asking.communicate()
    os.close(ours)
    assert "Start it? [y/N]" in shown and asking.returncode == code
    assert len(Registry().find()) == jobs
    for job in Registry().find():
        typed("jobs", job.id, "--kill")


def test_an_interrupted_server_ends_at_once() -> None:
    with subprocess.Popen(
        [*ML, "serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as serving:
        assert serving.stdin is not None and serving.stdout is not None
        serving.stdin.write(
            b'{"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {"protocolVersion": "2025-06-18", '
            b'"capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}}\n'
        )
        serving.stdin.flush()
        assert serving.stdout.readline()
        serving.send_signal(signal.SIGINT)
        assert serving.wait() == 130
        assert b"Traceback" not in serving.stderr.read()


@pytest.mark.skipif(os.name != "posix", reason="Ctrl-C is a signal of POSIX")
def test_an_engine_of_ones_own_knows_the_demo_model_and_ends_on_ctrl_c(tmp_path: Path) -> None:
    command = [*ML, "engine", "--model", "demo", "--port", "0", "--store", str(tmp_path / "store")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as serving:
        assert serving.stdout is not None and serving.stdout.readline().startswith("listening on http://127.0.0.1:")
        serving.send_signal(signal.SIGINT)
        _, said = serving.communicate()
    assert serving.returncode == 130 and "Traceback" not in said


def test_the_engine_that_jobs_use_is_stopped(own_home: Path, config: str) -> None:
    (own_home / "engine").unlink()  # not the one that other tests share
    job_id = json_of("run", config, "num_steps=100000", "--yes")["job_id"]
    wait_until(job_id, lambda job: job.step > 0)
    assert json_of("engine", "status")["jobs"] == [job_id]
    result = typed("engine", "stop")
    assert result.exit_code == 2 and f"In use by: {job_id}" in result.stdout
    typed("jobs", job_id, "--kill")
    assert json_of("engine", "stop") == {"stopped": True}
    assert "No engine is running" in typed("engine", "status").stdout


def test_the_first_source_of_a_mixture_says_what_kind_of_job_it_is(tmp_path: Path) -> None:
    pairs = [{"ask": f"say {i}", "good": "yes", "bad": "no"} for i in range(9)]
    columns = {"prompt": "ask", "chosen": "good", "rejected": "bad"}
    for i in range(2):
        rows = "".join(json.dumps({**row, "ask": f"{row['ask']} {i}"}) + "\n" for row in pairs)
        (tmp_path / f"{i}.jsonl").write_text(rows)
    sources = [{"path": f"{i}.jsonl", "columns": columns} for i in range(2)]
    (tmp_path / "mix.yaml").write_text(yaml.safe_dump({"base_model": "demo", "train_file": sources}))
    plan = json_of("run", str(tmp_path / "mix.yaml"), "--validate-only")
    assert plan["rows"] == 18 and "beta" in plan["config"]
    assert [source["name"] for source in plan["details"]["sources"]] == ["0", "1"]
