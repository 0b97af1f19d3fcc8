"""Run the cookbook's own recipes, unmodified, against the engine, with local rows in place of hub data sets.

usage: python -m benchmarks.recipes [--only sl_loop,rl_loop,sl_basic,rl_basic,dpo,shorter,rlhf]

One JSON line per recipe: the steps it took and its last metrics. Only ``datasets.load_dataset`` is replaced (a test has
no network) and the tokenizer behind a model's name; the recipes' modules run as installed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.methods import KEY, start_engine
from benchmarks.models import write_model

MODEL = "Qwen/Qwen3-8B"
STEPS = 2


def _rows(name: str) -> Any:
    """Rows in the shape of the hub data set ``name``."""
    from datasets import Dataset, DatasetDict

    if "no_robots" in name:
        rows = [
            {"messages": [{"role": "user", "content": f"say {i}"}, {"role": "assistant", "content": f"{i}!"}]}
            for i in range(24)
        ]
    elif "gsm8k" in name:
        rows = [{"question": f"What is {i} plus {i}?", "answer": f"It is twice.\n#### {2 * i}"} for i in range(24)]
    elif "hh-rlhf" in name:
        rows = [
            {
                side: f"\n\nHuman: say {i}\n\nAssistant: {i}{'!' if side == 'chosen' else '?'}"
                for side in ("chosen", "rejected")
            }
            for i in range(24)
        ]
    else:
        raise ValueError(f"no local rows for {name}")
    return DatasetDict({split: Dataset.from_list(rows) for split in ("train", "test")})


def _local_dataset(path: str, name: str | None = None, split: str | None = None, **_: Any) -> Any:
    splits = _rows(path)
    return splits[split] if split else splits


def _sl_loop(url: str, folder: Path) -> None:
    from tinker_cookbook.recipes import sl_loop

    sl_loop.main(
        sl_loop.Config(
            base_url=url,
            log_path=str(folder),
            model_name=MODEL,
            batch_size=4,
            lora_rank=4,
            max_steps=STEPS,
            save_every=1,
        )
    )


def _rl_loop(url: str, folder: Path) -> None:
    from tinker_cookbook.recipes import rl_loop

    rl_loop.main(
        rl_loop.Config(
            base_url=url,
            log_path=str(folder),
            model_name=MODEL,
            batch_size=2,
            group_size=4,
            lora_rank=4,
            max_tokens=8,
            max_steps=STEPS,
            save_every=1,
        )
    )


def _basic(module: Any, url: str, folder: Path, **settings: Any) -> None:
    """A recipe that is a blueprint: the same overrides its command line takes."""
    blueprint = module.build_config_blueprint(MODEL)
    overrides = {"base_url": url, "log_path": str(folder), "lora_rank": 4, "max_steps": STEPS, **settings}
    config = blueprint.apply(overrides).make()
    module.main(config)


def _sl_basic(url: str, folder: Path) -> None:
    from tinker_cookbook.recipes import sl_basic
    from tinker_cookbook.recipes.chat_sl.chat_datasets import NoRobotsBuilder
    from tinker_cookbook.supervised.types import ChatDatasetBuilderCommonConfig

    common = ChatDatasetBuilderCommonConfig(
        model_name_for_tokenizer=MODEL, renderer_name="qwen3", max_length=512, batch_size=4
    )
    _basic(sl_basic, url, folder, dataset_builder=NoRobotsBuilder(common_config=common), eval_every=1)


def _rl_basic(url: str, folder: Path) -> None:
    from tinker_cookbook.recipes import rl_basic
    from tinker_cookbook.recipes.math_rl.math_env import Gsm8kDatasetBuilder

    data = Gsm8kDatasetBuilder(batch_size=2, group_size=4, renderer_name="qwen3", model_name_for_tokenizer=MODEL)
    _basic(rl_basic, url, folder, max_tokens=8, dataset_builder=data)


def _dpo(url: str, folder: Path) -> None:
    from tinker_cookbook.recipes.preference.dpo import train

    train.cli_main(
        train.CLIConfig(
            model_name=MODEL, renderer_name="qwen3", base_url=url, log_path=str(folder), batch_size=4, max_steps=STEPS
        )
    )


def _shorter(url: str, folder: Path) -> None:
    from tinker_cookbook.recipes.preference.shorter import train

    os.environ["TINKER_BASE_URL"] = url
    train.cli_main(
        train.CLIConfig(
            model_name=MODEL,
            renderer_name="qwen3",
            log_path=str(folder),
            batch_size=2,
            group_size=4,
            max_tokens=8,
            eval_every=0,
            max_steps=STEPS,
        )
    )


def _rlhf(url: str, folder: Path) -> None:
    """SFT, a reward model and RL on it, three runs below ``folder``; the figures are those of the last."""
    from tinker_cookbook.recipes.preference.rlhf import rlhf_pipeline

    os.environ |= {"TINKER_BASE_URL": url, "TINKER_COOKBOOK_RUNS_DIR": str(folder)}
    rlhf_pipeline.cli_main(
        rlhf_pipeline.CLIConfig(
            base_model=MODEL,
            short_name="local",
            lora_rank=4,
            max_length=256,
            batch_size=4,
            rl_max_tokens=8,
            rl_group_size=4,
            save_every=1,
            eval_every=1,
            max_steps=STEPS,
        )
    )


RECIPES: dict[str, Callable[[str, Path], None]] = {
    "sl_loop": _sl_loop,
    "rl_loop": _rl_loop,
    "sl_basic": _sl_basic,
    "rl_basic": _rl_basic,
    "dpo": _dpo,
    "shorter": _shorter,
    "rlhf": _rlhf,
}


def _last_log(folder: Path) -> Path:
    """Where a recipe wrote its records: the folder it was given, or the last of several runs below."""
    logs = folder.rglob("metrics.jsonl")
    return max(logs, key=lambda path: path.stat().st_mtime_ns).parent


def _last_metrics(folder: Path) -> dict[str, Any]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    last: dict[str, Any] = json.loads(lines[-1])
    told = ("train_mean_nll", "reward/mean", "reward/total", "env/all/reward/total", "dpo_loss", "test/nll")
    return {"records": len(lines), **{key: last[key] for key in told if key in last}}


def run(names: list[str]) -> list[dict[str, Any]]:
    """Run recipes one after the other on one engine."""
    import datasets

    datasets.load_dataset = _local_dataset
    os.environ |= {"TINKER_API_KEY": KEY, "TINKER_TELEMETRY": "0", "HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled"}
    warnings.simplefilter("ignore")
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        model = write_model(Path(folder) / "model", "tiny")
        _use_tokenizer(model)
        process, url = start_engine(model, Path(folder) / "store", name=MODEL)
        try:
            for name in names:
                log = Path(folder) / name
                RECIPES[name](url, log)
                log = _last_log(log)
                saved = len((log / "checkpoints.jsonl").read_text().splitlines())
                results.append({"recipe": name, "checkpoints": saved, **_last_metrics(log)})
                print(json.dumps(results[-1]), flush=True)
        finally:
            process.terminate()
            process.wait(timeout=60)
    return results


def _use_tokenizer(model: Path) -> None:
    from tinker_cookbook import tokenizer_utils
    from transformers import AutoTokenizer

    tokenizer_utils.register_tokenizer(MODEL, lambda: AutoTokenizer.from_pretrained(model))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default=",".join(RECIPES))
    names = parser.parse_args().only.split(",")
    asyncio.set_event_loop(asyncio.new_event_loop())
    run(names)
    sys.stdout.flush()
    os._exit(0)  # the SDK's threads would keep the interpreter for a while


if __name__ == "__main__":
    main()
