"""Train the demo model for real, soundly and with planted faults, and keep the logs under ``tests/analysis/logs``.

``python scripts/make_training_logs.py trl|torch|jobs [--out DIR] [--only WORDS]``. ``trl`` trains with TRL (the
``bench`` extra), ``torch`` with a plain loop that takes less time and logs as TRL does, ``jobs`` through this server's
own tools on the embedded engine. Every run is drawn from its name and seed:
task, length, batch, schedule, how often it logs and validates. Seeds below `FIRST_HELD_OUT` are those the thresholds
of the findings were set on; the others were not looked at. Logs that exist are not made again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import random
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import demo_tasks
from training_runs import (
    FAULTS,
    FIRST_HELD_OUT,
    GOOD_RATE,
    HEALTHY,
    Pair,
    Settings,
    Spec,
    case_pairs,
    dpo_rows,
    draw,
    pairs_of,
    say_pairs,
    sft_rows,
    shuffled_answers,
)

ROOT = Path(__file__).parents[1]
LOGS = ROOT / "tests" / "analysis" / "logs"
MODEL = ROOT / "demo" / "model"
KEPT = (
    "step epoch loss eval_loss grad_norm learning_rate num_tokens rewards/margins rewards/accuracies rewards/chosen "
    "logps/chosen eval_rewards/margins eval_rewards/accuracies reward kl entropy frac_reward_zero_std "
    "completions/mean_length completions/clipped_ratio train_mean_nll test/nll dpo_loss margin accuracy "
    "chosen_logratio test/dpo_loss test/margin test/accuracy optim/entropy optim/kl_sample_train_v1 reward/mean "
    "test/reward reward/constant_groups response/tokens response/cut time/total num_loss_tokens optim/grad_norm "
    "env/all/reward/total"
).split()


# --- with TRL ------------------------------------------------------------------------------------------------------


def encoded(tokenizer: Any, rows: Sequence[Pair], mask: str) -> Any:
    """Rows as token ids and labels; ``mask`` says which tokens carry loss."""
    from datasets import Dataset

    records: list[dict[str, list[int]]] = []
    for prompt, answer in rows:
        head = f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
        a, b = tokenizer.encode(head), tokenizer.encode(answer + "<|im_end|>")
        labels = [-100] * len(a) + b
        if mask == "mask_end_only":
            labels = [-100] * (len(a) + len(b) - 1) + b[-1:]
        elif mask == "mask_everything":
            labels = a + b
        elif mask == "mask_empty":
            labels = [-100] * (len(a) + len(b))
        records.append({"input_ids": a + b, "labels": labels})
    return Dataset.from_list(records)


def _sequential(trainer_class: type) -> type:
    from torch.utils.data import SequentialSampler

    def in_order(trainer: Any, dataset: Any = None) -> Any:
        return SequentialSampler(dataset if dataset is not None else trainer.train_dataset)

    return type("InOrder", (trainer_class,), {"_get_train_sampler": in_order})


def poison(step: int) -> Any:
    """A callback that turns the weights into nan at a step, as an overflow does."""
    import torch
    from transformers import TrainerCallback

    class Poison(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            if state.global_step == step:
                with torch.no_grad():
                    for parameter in more["model"].parameters():
                        if parameter.requires_grad:
                            parameter.fill_(math.nan)

    return Poison()


def common_arguments(spec: Spec, s: Settings, folder: str) -> dict[str, Any]:
    """What every trainer of TRL is told."""
    return {
        "output_dir": folder,
        "max_steps": s.steps,
        "per_device_train_batch_size": s.batch,
        "per_device_eval_batch_size": 64,
        "learning_rate": s.rate,
        "lr_scheduler_type": s.schedule,
        "lr_scheduler_kwargs": {"num_cycles": 2} if s.schedule == "cosine_with_restarts" else {},
        "warmup_steps": int(s.warmup * s.steps) if s.schedule != "constant" else 0,
        "logging_steps": s.log_every,
        "eval_strategy": "steps" if s.eval_every else "no",
        "eval_steps": s.eval_every or None,
        "save_strategy": "no",
        "report_to": [],
        "seed": spec.seed,
        "use_cpu": True,
        "bf16": False,
        "fp16": False,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "logging_nan_inf_filter": spec.fault != "nan_raw",
        "dataloader_num_workers": 0,
    }


def trl_sft(spec: Spec, s: Settings, rng: random.Random, folder: str) -> Any:
    """The trainer of an SFT run, of all weights or of an adapter."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    rows, keep_order = sft_rows(spec, s, rng)
    held_out = pairs_of(s.task, rng, 40)
    if spec.fault == "labels_shuffled":
        held_out = shuffled_answers(held_out, rng)
    mask = spec.fault if spec.fault.startswith("mask_") else ""
    peft = None
    if spec.method == "lora":
        from peft import LoraConfig

        peft = LoraConfig(r=s.rank, lora_alpha=32, target_modules="all-linear")
    trainer = (_sequential(SFTTrainer) if keep_order else SFTTrainer)(
        model=AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32),
        processing_class=tokenizer,
        args=SFTConfig(
            max_length=None, dataset_kwargs={"skip_prepare_dataset": True}, **common_arguments(spec, s, folder)
        ),
        train_dataset=encoded(tokenizer, rows, mask),
        eval_dataset=encoded(tokenizer, held_out, mask) if s.eval_every else None,
        peft_config=peft,
    )
    return trainer


def as_preferences(rows: Sequence[Mapping[str, str]]) -> Any:
    """Pairs as TRL reads them."""
    from datasets import Dataset

    return Dataset.from_list(
        [
            {
                "prompt": f"<|im_start|>user\n{r['prompt']}<|im_end|>\n<|im_start|>assistant\n",
                "chosen": r["chosen"],
                "rejected": r["rejected"],
            }
            for r in rows
        ]
    )


def trl_dpo(spec: Spec, s: Settings, rng: random.Random, folder: str) -> Any:
    """The trainer of a DPO run."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    rows, keep_order = dpo_rows(spec, s, rng)
    held_out = (case_pairs if spec.seed % 2 else say_pairs)(rng, 24)
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    reference = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    if spec.fault == "wrong_reference":
        disturb(reference, spec.seed, rng.uniform(0.15, 0.4))
    return (_sequential(DPOTrainer) if keep_order else DPOTrainer)(
        model=model,
        ref_model=reference,
        processing_class=tokenizer,
        args=DPOConfig(beta=0.1, max_length=None, **common_arguments(spec, s, folder)),
        train_dataset=as_preferences(rows),
        eval_dataset=as_preferences(held_out) if s.eval_every else None,
    )


def trl_rl(spec: Spec, s: Settings, rng: random.Random, folder: str) -> Any:
    """The trainer of a GRPO run: a word in small letters is worth 1."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    noise = random.Random(spec.seed)

    def reward(completions: list[str], answer: list[str], **_: Any) -> list[float]:
        if spec.fault == "reward_zero":
            return [0.0 for _ in completions]
        if spec.fault == "reward_random":
            return [float(noise.random() < 0.3) for _ in completions]
        return [float(text.strip() == right) for text, right in zip(completions, answer, strict=True)]

    tokenizer = AutoTokenizer.from_pretrained(MODEL, padding_side="left")
    rows = pairs_of("say", rng, 200)
    data = [
        {"prompt": f"<|im_start|>user\n{p}<|im_end|>\n<|im_start|>assistant\n", "answer": answer} for p, answer in rows
    ]
    return GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32),
        reward_funcs=reward,
        processing_class=tokenizer,
        args=GRPOConfig(
            num_generations=8,
            max_completion_length=8,
            beta=0.0,
            **(
                common_arguments(spec, s, folder)
                | {"per_device_train_batch_size": 64, "per_device_eval_batch_size": 64}
            ),
        ),
        train_dataset=Dataset.from_list(data),
    )


TRAINERS: Mapping[str, Callable[[Spec, Settings, random.Random, str], Any]] = {
    "sft": trl_sft,
    "lora": trl_sft,
    "dpo": trl_dpo,
    "rl": trl_rl,
}


def run_trl(spec: Spec, out: Path) -> None:
    """Train one run with TRL and keep its log."""
    import torch

    torch.set_num_threads(1)
    settings, rng = draw(spec)
    with tempfile.TemporaryDirectory() as folder:
        trainer = TRAINERS[spec.method](spec, settings, rng, folder)
        if spec.fault.startswith("nan"):
            trainer.add_callback(poison(int(settings.steps * rng.uniform(0.4, 0.8))))
        trainer.train()
        history = [kept(r) for r in trainer.state.log_history if "train_runtime" not in r]
    state = {"max_steps": settings.steps, "global_step": settings.steps, "log_history": history}
    write(out, spec, settings, "trainer_state.json", _lines_of_state(state))


def _lines_of_state(state: Mapping[str, Any]) -> str:
    """A trainer_state.json with one record a line, so that a change of a log can be read."""
    records = ",\n".join(json.dumps(r) for r in state["log_history"])
    head = ", ".join(f'"{k}": {json.dumps(v)}' for k, v in state.items() if k != "log_history")
    return f'{{{head}, "log_history": [\n{records}\n]}}\n'


def kept(record: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics that are read, to five digits."""
    return {k: rounded(record[k]) for k in KEPT if k in record}


def rounded(value: Any) -> Any:
    """A metric to five digits."""
    if isinstance(value, str):
        value = float(value)
    return float(f"{value:.5g}") if isinstance(value, float) else value


def write(out: Path, spec: Spec, settings: Settings, name: str, text: str, config: str | None = None) -> None:
    """Keep a log with what was planted and how the run was set."""
    folder = out / spec.name
    folder.mkdir(parents=True)
    (folder / "planted.json").write_text(json.dumps({"run": asdict(spec), "settings": asdict(settings)}) + "\n")
    if config is not None:
        (folder / "config.yaml").write_text(config)
    (folder / name).write_text(text)


# --- with a plain loop ---------------------------------------------------------------------------------------------


class Recorder:
    """Log records as the trainer of transformers makes them: means since the last record, nan hidden if so told."""

    def __init__(self, s: Settings, *, hide_nan: bool) -> None:
        self._s, self._hide = s, hide_nan
        self._sums: dict[str, list[float]] = {}
        self.history: list[dict[str, Any]] = []

    def step(self, step: int, values: Mapping[str, float], last: Mapping[str, float]) -> None:
        """A step's ``values`` (of which the mean is logged) and what is logged as it is at the ``last`` one."""
        for name, value in values.items():
            hidden = self._hide and name == "loss" and not math.isfinite(value)
            self._sums.setdefault(name, []).append(0.0 if hidden else value)
        if step % self._s.log_every == 0:
            means = {name: sum(v) / len(v) for name, v in self._sums.items()}
            self.history.append({**means, **last, **self._place(step)})
            self._sums.clear()

    def evaluate(self, step: int, values: Mapping[str, float]) -> None:
        """A validation's values."""
        self.history.append({**values, **self._place(step)})

    def _place(self, step: int) -> dict[str, Any]:
        return {"epoch": step * self._s.batch / self._s.rows, "step": step}


def batches_of(count: int, s: Settings, rng: random.Random, *, in_order: bool) -> Iterator[list[int]]:
    """Indices of rows, an epoch after the other, each in an order of its own."""
    waiting: list[int] = []
    for _ in range(s.steps):
        while len(waiting) < s.batch:
            order = list(range(count))
            if not in_order:
                rng.shuffle(order)
            waiting += order
        yield waiting[: s.batch]
        del waiting[: s.batch]


def padded(rows: Sequence[Mapping[str, list[int]]]) -> tuple[Any, Any]:
    """Token ids and labels [B, T]; right of a row padding without loss."""
    import torch

    longest = max(len(r["input_ids"]) for r in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    labels = torch.full((len(rows), longest), -100)
    for i, row in enumerate(rows):
        ids[i, : len(row["input_ids"])] = torch.tensor(row["input_ids"])
        labels[i, : len(row["labels"])] = torch.tensor(row["labels"])
    return ids, labels


def token_losses(model: Any, ids: Any, labels: Any) -> Any:
    """Negative log-probabilities [B, T - 1], zero where there is no loss."""
    from torch.nn.functional import cross_entropy

    logits = model(input_ids=ids).logits[:, :-1].float()
    return cross_entropy(logits.transpose(1, 2), labels[:, 1:], ignore_index=-100, reduction="none")


class SftLoss:
    """The mean loss of a batch's answer tokens."""

    def __init__(self, spec: Spec, s: Settings, rng: random.Random, tokenizer: Any) -> None:
        mask = spec.fault if spec.fault.startswith("mask_") else ""
        rows, self.in_order = sft_rows(spec, s, rng)
        held_out = pairs_of(s.task, rng, 40)
        if spec.fault == "labels_shuffled":
            held_out = shuffled_answers(held_out, rng)
        self.rows, self._held_out = list(encoded(tokenizer, rows, mask)), list(encoded(tokenizer, held_out, mask))

    def __call__(self, model: Any, chosen: Sequence[int]) -> tuple[Any, dict[str, float]]:
        """The loss of a batch, and what is logged besides."""
        loss = self._mean(model, [self.rows[i] for i in chosen])
        return loss, {}

    def evaluate(self, model: Any) -> dict[str, float]:
        """What a validation logs."""
        return {"eval_loss": float(self._mean(model, self._held_out))}

    def _mean(self, model: Any, rows: Sequence[Any]) -> Any:
        ids, labels = padded(rows)
        return token_losses(model, ids, labels).sum() / (labels[:, 1:] != -100).sum()


class DpoLoss:
    """The DPO loss of a batch of pairs (beta 0.1), with the metrics that TRL logs."""

    def __init__(self, spec: Spec, s: Settings, rng: random.Random, tokenizer: Any) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        rows, self.in_order = dpo_rows(spec, s, rng)
        held_out = (case_pairs if spec.seed % 2 else say_pairs)(rng, 24)
        self.rows, self._held_out = (self._encode(tokenizer, part) for part in (rows, held_out))
        self._reference = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
        if spec.fault == "wrong_reference":
            disturb(self._reference, spec.seed, rng.uniform(0.15, 0.4))

    @staticmethod
    def _encode(tokenizer: Any, rows: Sequence[Mapping[str, str]]) -> list[tuple[Any, Any]]:
        sides = [
            list(encoded(tokenizer, [(r["prompt"], r[side]) for r in rows], "")) for side in ("chosen", "rejected")
        ]
        return list(zip(*sides, strict=True))

    def __call__(self, model: Any, chosen: Sequence[int]) -> tuple[Any, dict[str, float]]:
        """The loss of a batch, and what is logged besides."""
        return self._loss(model, [self.rows[i] for i in chosen])

    def evaluate(self, model: Any) -> dict[str, float]:
        """What a validation logs."""
        loss, values = self._loss(model, self._held_out)
        return {"eval_loss": float(loss), **{f"eval_{name}": value for name, value in values.items()}}

    def _loss(self, model: Any, pairs: Sequence[tuple[Any, Any]]) -> tuple[Any, dict[str, float]]:
        import torch
        from torch.nn.functional import logsigmoid

        ids, labels = padded([pair[0] for pair in pairs] + [pair[1] for pair in pairs])
        own = -token_losses(model, ids, labels).sum(1)
        with torch.no_grad():
            reference = -token_losses(self._reference, ids, labels).sum(1)
        rewards = 0.1 * (own - reference)
        n = len(pairs)
        margins = rewards[:n] - rewards[n:]
        return -logsigmoid(margins).mean(), {
            "rewards/chosen": float(rewards[:n].mean()),
            "rewards/margins": float(margins.mean()),
            "rewards/accuracies": float((margins > 0).float().mean()),
            "logps/chosen": float(own[:n].mean()),
        }


def disturb(model: Any, seed: int, size: float) -> None:
    """Add noise to a model's matrices, as a share of their own spread."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * parameter.std() * size)


def run_torch(spec: Spec, out: Path) -> None:
    """Train one run with AdamW and a schedule, the gradient clipped at 1, and keep its log."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, get_scheduler

    torch.set_num_threads(1)
    torch.manual_seed(spec.seed)
    s, rng = draw(spec)
    model: Any = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    if spec.method == "lora":
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(r=s.rank, lora_alpha=32, target_modules="all-linear"))
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    loss_of = (DpoLoss if spec.method == "dpo" else SftLoss)(spec, s, rng, tokenizer)
    poisoned = int(s.steps * rng.uniform(0.4, 0.8)) if spec.fault.startswith("nan") else -1
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=s.rate, weight_decay=0.0)
    extra = {"scheduler_specific_kwargs": {"num_cycles": 2}} if s.schedule == "cosine_with_restarts" else {}
    schedule = get_scheduler(s.schedule, optimizer, int(s.warmup * s.steps), s.steps, **extra)
    record = Recorder(s, hide_nan=spec.fault != "nan_raw")
    for step, chosen in enumerate(batches_of(len(loss_of.rows), s, rng, in_order=loss_of.in_order), 1):
        loss, values = loss_of(model, chosen)
        loss.backward()
        norm = float(torch.nn.utils.clip_grad_norm_(weights, 1.0))
        rate = schedule.get_last_lr()[0]
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        record.step(step, {"loss": float(loss.detach()), **values}, {"grad_norm": norm, "learning_rate": rate})
        if s.eval_every and step % s.eval_every == 0:
            with torch.no_grad():
                record.evaluate(step, loss_of.evaluate(model))
        if step == poisoned:
            with torch.no_grad():
                for parameter in weights:
                    parameter.fill_(math.nan)
    state = {"max_steps": s.steps, "global_step": s.steps, "log_history": [kept(r) for r in record.history]}
    write(out, spec, s, "trainer_state.json", _lines_of_state(state))


# --- with this server's jobs, on the embedded engine ---------------------------------------------------------------

JOB_RATE = {"sft": 6e-4, "dpo": 2e-4, "rl": 3e-4}
JOB_FAULTS: Mapping[str, tuple[str, ...]] = {
    "sft": ("lr_x30", "lr_x100", "lr_d100", "lr_d1000", "labels_shuffled", "tiny_data"),
    "dpo": ("lr_x100", "lr_d1000", "labels_random"),
    "rl": ("lr_x100", "lr_d1000", "reward_random"),
}
JOB_HEALTHY: Mapping[str, int] = {"sft": 6, "dpo": 4, "rl": 3}


def job_settings(spec: Spec, s: Settings, rng: random.Random, folder: Path) -> dict[str, Any]:
    """The settings of a job, its data files written."""
    rate = JOB_RATE[spec.method] * s.rate / GOOD_RATE[spec.method]
    given: dict[str, Any] = {
        "base_model": "demo",
        "train_file": str(folder / "train.jsonl"),
        "learning_rate": rate,
        "num_steps": s.steps,
        "batch_size": s.batch,
        "lora_rank": s.rank,
        "seed": spec.seed,
        "checkpoint_every": 0,
        "eval_every": s.eval_every,
    }
    held_out: list[dict[str, Any]]
    if spec.method == "sft":
        pairs, _ = sft_rows(spec, s, rng)
        rows = [demo_tasks.messages(*pair) for pair in pairs]
        held_out = [demo_tasks.messages(*pair) for pair in pairs_of(s.task, rng, 48)]
        given["lr_schedule"] = rng.choice(("linear", "cosine", "constant"))
    elif spec.method == "dpo":
        rows, _ = dpo_rows(spec, s, rng)
        held_out = (case_pairs if spec.seed % 2 else say_pairs)(rng, 32)
        given["lr_schedule"] = rng.choice(("linear", "cosine", "constant"))
    else:
        rows = [{"prompt": p, "answer": answer} for p, answer in pairs_of("say", rng, 200)]
        held_out = [{"prompt": p, "answer": answer} for p, answer in pairs_of("say", rng, 24)]
        # As the template trains it: with less the demo model learns too little to be called healthy.
        given |= {"group_size": 16, "batch_size": 16, "num_substeps": 2, "loss_fn": "ppo", "num_steps": s.steps + 30}
        given |= {"max_response_tokens": 8, "eval_every": max(2, s.steps // 8), "reward_type": "exact"}
        if spec.fault == "reward_random":
            script = folder / "reward.py"
            script.write_text(
                "import random\nnoise = random.Random(1)\n\n"
                "def reward(prompt, response, row):\n    return float(noise.random() < 0.3)\n"
            )
            given |= {"reward_type": "custom", "reward_script": str(script), "allow_unsandboxed": True, "force": True}
    _jsonl(folder / "train.jsonl", rows)
    if given["eval_every"]:
        _jsonl(folder / "val.jsonl", held_out)
        given["val_file"] = str(folder / "val.jsonl")
    return given


def _jsonl(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def run_job(spec: Spec, out: Path) -> None:
    """Train one run as a job of this server and keep its log and its settings."""
    import anyio
    from mcp import Client

    from sota_ml_researcher.server.app import build_server

    settings, rng = draw(spec)
    with tempfile.TemporaryDirectory() as folder:
        given = job_settings(spec, settings, rng, Path(folder))

        async def work() -> Path:
            async with Client(build_server()) as client:
                tool = {"sft": "start_sft", "dpo": "start_dpo", "rl": "start_grpo"}[spec.method]
                started = await client.call_tool(tool, {"overrides": given})
                if started.is_error:
                    raise SystemExit(f"{spec.name}: {started.content}")
                job_id = (started.structured_content or {})["job_id"]
                while True:
                    answer = await client.call_tool("wait_for_job", {"job_id": job_id, "timeout_s": 50})
                    job = answer.structured_content or {}
                    if job["state"] not in ("queued", "starting", "running"):
                        return Path(job["run_folder"])

        run_folder = anyio.run(work)
        records = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
        config = (run_folder / "config.yaml").read_text().replace(folder, "/data")
    shown = "".join(json.dumps(kept(record)) + "\n" for record in records)
    lines = [line.split("  #")[0] for line in config.splitlines() if line and not line.startswith("#")]
    write(out, spec, settings, "metrics.jsonl", shown, "\n".join(lines) + "\n")


# --- what is made --------------------------------------------------------------------------------------------------


MAKERS: Mapping[str, tuple[Callable[[Spec, Path], None], Mapping[str, tuple[str, ...]], Mapping[str, int]]] = {
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
