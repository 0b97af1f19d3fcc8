"""The peer: TRL + PEFT on the benchmark model, one kind of work per process. Prints one JSON line.

usage: python -m benchmarks.peer_trl sft|ragged|dpo|grpo MODEL_DIR [--steps N] [--dtype bf16|fp32]

Rank 16 on every linear layer, alpha 32; the work is that of `benchmarks.work`. Needs the `bench` extra.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from typing import Any

from benchmarks import work


def _callback(meter: work.Meter) -> Any:
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            meter.start()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            meter.stop()

    return Clock()


def _trainer(
    method: str, model_dir: str, common: dict[str, Any], steps: int, meter: work.Meter, attention: str | None
) -> tuple[Any, float]:
    """A trainer, and the real tokens per step."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    model = AutoModelForCausalLM.from_pretrained(
        model_dir, dtype=torch.float32, **({"attn_implementation": attention} if attention else {})
    )
    shared: dict[str, Any] = {
        "model": model,
        "processing_class": tokenizer,
        "peft_config": LoraConfig(r=work.RANK, lora_alpha=32, target_modules="all-linear"),
        "callbacks": [_callback(meter)],
    }
    if method in ("sft", "ragged"):
        from trl import SFTConfig, SFTTrainer

        batches = work.sft_batches(steps, ragged=method == "ragged")
        rows = [
            {"input_ids": ids, "labels": [-100] * (len(ids) // 2) + ids[len(ids) // 2 :]}
            for batch in batches
            for ids in batch
        ]
        settings = SFTConfig(
            per_device_train_batch_size=work.BATCH,
            max_length=None,
            dataset_kwargs={"skip_prepare_dataset": True},
            **common,
        )
        trainer = SFTTrainer(train_dataset=Dataset.from_list(rows), args=settings, **shared)
        return trainer, sum(len(row["input_ids"]) for row in rows) / steps
    if method == "dpo":
        from trl import DPOConfig, DPOTrainer

        pairs = [pair for batch in work.pair_batches(steps) for pair in batch]
        rows = [{key: tokenizer.decode(ids) for key, ids in pair.items()} for pair in pairs]
        tokens = sum(
            len(tokenizer(row["prompt"] + row[side])["input_ids"]) for row in rows for side in ("chosen", "rejected")
        )
        settings = DPOConfig(per_device_train_batch_size=work.BATCH, beta=0.1, **common)
        return DPOTrainer(train_dataset=Dataset.from_list(rows), args=settings, **shared), tokens / steps
    from trl import GRPOConfig, GRPOTrainer

    rows = [{"prompt": f"{i} plus {i} equals"} for i in range(work.GROUPS * steps)]
    settings = GRPOConfig(
        per_device_train_batch_size=work.GROUPS * work.GROUP,
        num_generations=work.GROUP,
        max_completion_length=work.GRPO_TOKENS,
        generation_kwargs={"min_new_tokens": work.GRPO_TOKENS},
        **common,
    )
    rewards = lambda completions, **_: [float(len(text) % 2) for text in completions]  # noqa: E731
    trainer = GRPOTrainer(train_dataset=Dataset.from_list(rows), args=settings, reward_funcs=rewards, **shared)
    return trainer, work.GROUPS * work.GROUP * work.GRPO_TOKENS


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("method", choices=["sft", "ragged", "dpo", "grpo"])
    parser.add_argument("model")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--dtype", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--attention", help="attn_implementation of transformers; its default if left out")
    options = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    meter = work.Meter()
    with tempfile.TemporaryDirectory() as folder:
        common = {
            "output_dir": folder,
            "max_steps": options.steps,
            "learning_rate": 1e-4,
            "report_to": [],
            "save_strategy": "no",
            "logging_strategy": "no",
            "bf16": options.dtype == "bf16",
            "use_cpu": options.device == "cpu",
            "gradient_checkpointing": False,
            "disable_tqdm": True,
        }
        trainer, tokens = _trainer(options.method, options.model, common, options.steps, meter, options.attention)
        trainer.train()
    print(
        json.dumps(
            work.summary("trl", options.method, meter, tokens, work.peak_mb(options.device)) | {"dtype": options.dtype}
        )
    )


if __name__ == "__main__":
    main()
