"""Wall time of a job over the cookbook's own loop called directly, with the same work on the same engine.

    python -m benchmarks.job_overhead [--methods sft,dpo,grpo] [--rounds 2]

Both sides are a process from its start to its end, on one warm engine, with the packaged demo model and data, the same
batches, settings and checkpoints, and no validation. The direct side is the loop of tinker-cookbook as installed: its
DPO measures the reference in each step, its GRPO asks for every sample by itself and scores it in the loop's process.
The job has a loop of its own, and adds its worker, registry, heartbeats, metering, the reward's dry run, rollouts and
child processes for rewards.
Prints one JSON object per method; the ratio is of the medians. What both sides did is read from their metrics and
checkpoints and compared: the same steps, and in SFT and DPO the same tokens trained on and the same checkpoints. In
RL the cookbook saves once more at its end, and each side draws samples of its own: checkpoints and the tokens of the
groups kept are only shown.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# What both sides log of a step, by the name it has here.
COUNTED = {"tokens": "num_tokens", "kept_tokens": "env/all/total_ac_tokens"}
STEPS = {"sft": 150, "dpo": 60, "grpo": 40}
TARGETS = {"sft": 1.0, "dpo": 0.5, "grpo": 0.45}
# What may differ in RL: the cookbook's loop saves twice after its last step, and samples are each side's own.
_APART = {"grpo": {"kept_tokens", "checkpoints"}}


def _settings(method: str) -> Any:
    """The job's resolved settings."""
    from sota_ml_researcher.templates.catalog import template_path
    from sota_ml_researcher.training.dpo.config import load_dpo_settings
    from sota_ml_researcher.training.rl.config import load_rl_settings
    from sota_ml_researcher.training.sft.config import load_sft_settings

    load: Callable[..., Any] = {"sft": load_sft_settings, "dpo": load_dpo_settings, "grpo": load_rl_settings}[method]
    changes: dict[str, Any] = {"val_file": None, "num_steps": STEPS[method], "checkpoint_every": 20}
    if method != "grpo":
        changes["num_epochs"] = None
    return load(template_path(method), changes)


def _plan(method: str) -> Any:
    from sota_ml_researcher.training.dpo.plan import plan_dpo
    from sota_ml_researcher.training.rl.plan import plan_rl
    from sota_ml_researcher.training.sft.plan import plan_sft

    plan: Callable[..., Any] = {"sft": plan_sft, "dpo": plan_dpo, "grpo": plan_rl}[method]
    return plan(_settings(method))


def work_in(folder: Path) -> dict[str, int]:
    """What a loop did, by its own record."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if any(name in line for name in COUNTED.values())]
    saved = [json.loads(line) for line in (folder / "checkpoints.jsonl").read_text().splitlines()]
    counts = {name: sum(int(step[key]) for step in steps if key in step) for name, key in COUNTED.items()}
    return {"steps": len(steps), "checkpoints": len(saved), **{name: count for name, count in counts.items() if count}}


def run_job(method: str) -> tuple[float, dict[str, int]]:
    """Seconds from the start of a job to its end, and what it did."""
    from sota_ml_researcher.jobs.create import start_job
    from sota_ml_researcher.jobs.registry import Registry
    from sota_ml_researcher.jobs.states import ACTIVE, JobState

    plan, registry = _plan(method), Registry()
    config = plan.settings.config
    began = time.perf_counter()
    files = [Path(config.train_file)]
    job = start_job(registry, method, config, plan.settings.origins, files=files, total_steps=plan.total_steps)
    while job.state in ACTIVE:
        time.sleep(0.02)
        job = registry.get(job.id)
    if job.state is not JobState.SUCCEEDED:
        raise SystemExit(f"{job.id} {job.state}: {job.error}")
    return time.perf_counter() - began, work_in(job.folder)


def run_direct(method: str, url: str) -> tuple[float, dict[str, int]]:
    """Seconds of a process that calls the cookbook's loop with the settings a job would have, and what it did."""
    plan = _plan(method)
    with tempfile.TemporaryDirectory() as folder:
        given = {"url": url, "log": folder, "config": plan.settings.config.model_dump(mode="json")}
        (Path(folder) / "given.json").write_text(json.dumps(given))
        command = [sys.executable, "-m", "benchmarks.job_overhead", "--direct", method, f"{folder}/given.json"]
        began = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1])
        took = time.perf_counter() - began
        if done.returncode:
            raise SystemExit(done.stderr[-2000:])
        return took, work_in(Path(folder))


def _direct(method: str, file: Path) -> None:
    given = json.loads(file.read_text())
    {"sft": _direct_sft, "dpo": _direct_dpo, "grpo": _direct_grpo}[method](given["config"], given["url"], given["log"])


def _ready(config: dict[str, Any]) -> tuple[str, Any]:
    """The engine's name of the model, and the renderer; the loop's tokenizer is registered."""
    from tinker_cookbook import tokenizer_utils

    from sota_ml_researcher.models.model_ref import resolve_model
    from sota_ml_researcher.models.renderers import load_renderer

    model = resolve_model(config["base_model"])
    auto: Any = importlib.import_module("transformers").AutoTokenizer
    tokenizer = auto.from_pretrained(model.path, trust_remote_code=False)
    tokenizer_utils.register_tokenizer(model.wire_name, lambda: tokenizer)
    return model.wire_name, load_renderer(config["base_model"], config["renderer"])


def _common(config: dict[str, Any], url: str, log: str, name: str, renderer: Any) -> dict[str, Any]:
    return {
        "log_path": log,
        "base_url": url,
        "model_name": name,
        "recipe_name": "benchmark",
        "renderer_name": renderer.name,
        "learning_rate": config["learning_rate"],
        "lora_rank": config["lora_rank"],
        "save_every": config["checkpoint_every"],
        "eval_every": 0,
        "max_steps": config["num_steps"],
    }


def _batches(length: int, batch: Callable[[int], list[Any]]) -> Any:
    from tinker_cookbook.supervised.types import SupervisedDataset

    class Batches(SupervisedDataset):
        """The job's batches."""

        def __init__(self) -> None:
            self._epoch = 0

        def get_batch(self, index: int) -> list[Any]:
            return batch(self._epoch * length + index)

        def set_epoch(self, seed: int = 0) -> None:
            self._epoch = seed

        def __len__(self) -> int:
            return length

    return Batches()


def _direct_sft(config: dict[str, Any], url: str, log: str) -> None:
    import tinker
    import torch
    from tinker_cookbook.supervised import train
    from tinker_cookbook.supervised.common import datum_from_model_input_weights

    from sota_ml_researcher.data.supervised import load_sft_data

    name, renderer = _ready(config)
    data = load_sft_data(
        Path(config["train_file"]),
        renderer,
        batch_size=config["batch_size"],
        max_seq_len=config["max_seq_len"],
        seed=config["seed"],
    )

    def batch(index: int) -> list[Any]:
        return [
            datum_from_model_input_weights(
                tinker.ModelInput.from_ints([int(t) for t in example.tokens]),
                torch.as_tensor(example.weights, dtype=torch.float32),
                reduction="mean",
            )
            for example in data.batch(index)
        ]

    batches = _batches(len(data), batch)
    settings = {**_common(config, url, log, name, renderer), "lr_schedule": config["lr_schedule"], "submit_ahead": 1}
    epochs = -(-config["num_steps"] // len(data))
    builder: Any = _builder(lambda: (batches, None))
    asyncio.run(train.main(train.Config(dataset_builder=builder, num_epochs=epochs, **settings)))


def _direct_dpo(config: dict[str, Any], url: str, log: str) -> None:
    from tinker_cookbook.preference import train_dpo

    from sota_ml_researcher.data.preferences import load_preference_data
    from sota_ml_researcher.training.dpo.reference import data_of

    name, renderer = _ready(config)
    data = load_preference_data(
        Path(config["train_file"]),
        renderer,
        batch_size=config["batch_size"],
        max_seq_len=config["max_seq_len"],
        seed=config["seed"],
        skip_bad_rows=False,
    )
    batches = _batches(len(data), lambda index: data_of(data.batch(index)))
    settings = {**_common(config, url, log, name, renderer), "lr_schedule": config["lr_schedule"]}
    settings["infrequent_eval_every"] = 0
    epochs = -(-config["num_steps"] // len(data))
    builder: Any = _builder(lambda: (batches, None))
    train_dpo.main(train_dpo.Config(dataset_builder=builder, num_epochs=epochs, dpo_beta=config["beta"], **settings))


def _builder(build: Callable[[], tuple[Any, Any]], *, is_async: bool = False) -> Any:
    """A dataset builder around a function; the RL loop awaits its own."""
    import chz

    @chz.chz
    class Builder:
        make: Callable[[], tuple[Any, Any]]

        def __call__(self) -> Any:
            return self.make()

    @chz.chz
    class AsyncBuilder:
        make: Callable[[], tuple[Any, Any]]

        async def __call__(self) -> Any:
            return self.make()

    return (AsyncBuilder if is_async else Builder)(make=build)


def _direct_grpo(config: dict[str, Any], url: str, log: str) -> None:
    from tinker_cookbook.rl import train

    from sota_ml_researcher.rewards.problems import load_problems

    name, renderer = _ready(config)
    dataset = _exact_dataset(config, load_problems(Path(config["train_file"]), []), renderer)
    builder: Any = _builder(lambda: (dataset, None), is_async=True)
    asyncio.run(
        train.main(
            train.Config(
                dataset_builder=builder,
                max_tokens=config["max_response_tokens"],
                temperature=config["temperature"],
                loss_fn=config["loss_fn"],
                num_substeps=config["num_substeps"],
                remove_constant_reward_groups=config["drop_constant_groups"],
                num_groups_to_log=0,
                rollout_json_export=False,
                **_common(config, url, log, name, renderer),
            )
        )
    )


def _exact_dataset(config: dict[str, Any], problems: Sequence[Any], renderer: Any) -> Any:
    """The cookbook's environments with an exact match as the reward."""
    import numpy as np
    import tinker
    from tinker_cookbook.rl.types import Env, EnvGroupBuilder, RLDataset, StepResult

    from sota_ml_researcher.rewards.reward_rules import exact

    size, group = config["batch_size"], config["group_size"]

    class OneAnswer(Env):
        """One response to one prompt."""

        def __init__(self, problem: Any) -> None:
            self._problem = problem

        async def initial_observation(self) -> Any:
            return tinker.ModelInput.from_ints(renderer.generation_prompt(self._problem.messages)), renderer.stop

        async def step(self, action: list[int], *, extra: Any = None) -> StepResult:
            reward = exact(renderer.decode(action), str(self._problem.row["answer"]))
            return StepResult(reward, True, tinker.ModelInput.from_ints([]), renderer.stop)

    class Group(EnvGroupBuilder):
        """The samples of one prompt."""

        def __init__(self, problem: Any) -> None:
            self._problem = problem

        async def make_envs(self) -> list[Env]:
            return [OneAnswer(self._problem) for _ in range(group)]

    class Prompts(RLDataset):
        """The job's prompts, in its order."""

        def get_batch(self, index: int) -> list[EnvGroupBuilder]:
            return [Group(self._at(index * size + i)) for i in range(size)]

        def _at(self, position: int) -> Any:
            epoch, place = divmod(position, len(problems))
            order = np.random.default_rng([config["seed"], epoch]).permutation(len(problems))
            return problems[int(order[place])]

        def __len__(self) -> int:
            return int(config["num_steps"])

    return Prompts()


def stop_engine() -> None:
    """End the engine of this state folder."""
    from sota_ml_researcher.core.paths import engine_folder

    found = engine_folder() / "engine.json"
    if found.exists():
        os.kill(json.loads(found.read_bytes())["pid"], signal.SIGTERM)


def measure(method: str, rounds: int) -> dict[str, Any]:
    """Both sides in turn, ``rounds`` times, after one short direct run that warms the engine."""
    from sota_ml_researcher.backends.embedded import engine_key, ensure_engine

    url = ensure_engine()
    os.environ["TINKER_API_KEY"] = engine_key()
    kept = STEPS[method]
    STEPS[method] = 4
    run_direct(method, url)
    STEPS[method] = kept
    pairs = [(run_job(method), run_direct(method, url)) for _ in range(rounds)]
    for (_, ours), (_, theirs) in pairs:
        if any(ours[name] != theirs[name] for name in ours if name not in _APART.get(method, ())):
            raise SystemExit(f"{method}: the job did {ours}, the loop {theirs}")
    jobs, direct = [job for (job, _), _ in pairs], [loop for _, (loop, _) in pairs]
    middle = statistics.median(jobs), statistics.median(direct)
    return {
        "method": method,
        "job_s": [round(one, 2) for one in jobs],
        "direct_s": [round(one, 2) for one in direct],
        "ratio": round(middle[0] / middle[1], 3),
        "target": TARGETS[method],
        "job": pairs[-1][0][1],
        "direct": pairs[-1][1][1],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", default="sft,dpo,grpo")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, help="in place of each method's own")
    parser.add_argument("--direct", nargs=2, metavar=("METHOD", "FILE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ |= {"TINKER_TELEMETRY": "0", "HF_HUB_OFFLINE": "1"}
    if options.steps:
        STEPS.update(dict.fromkeys(STEPS, options.steps))
    if options.direct:
        _direct(options.direct[0], Path(options.direct[1]))
        sys.stdout.flush()
        os._exit(0)  # the SDK's threads would keep the interpreter for a while
    with tempfile.TemporaryDirectory() as folder:
        os.environ["ML_RESEARCHER_HOME"] = folder
        try:
            for method in options.methods.split(","):
                print(json.dumps(measure(method, options.rounds)), flush=True)
        finally:
            stop_engine()


if __name__ == "__main__":
    main()
