"""A model stored in a finer precision than the engine may compute in is named in the plan."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from sota_ml_researcher.core.paths import demo_data
from sota_ml_researcher.models.model_ref import resolve_model
from sota_ml_researcher.training.plan import precision_warnings
from sota_ml_researcher.training.sft.config import load_sft_settings
from sota_ml_researcher.training.sft.plan import plan_sft


def stored_in(dtype: str, folder: Path) -> Path:
    """The demo model, said to be stored in this precision."""
    demo = resolve_model("demo").path
    assert demo is not None
    model = folder / dtype
    shutil.copytree(demo, model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "dtype": dtype}))
    return model


@pytest.mark.parametrize(("dtype", "is_named"), [("float32", True), ("bfloat16", False)])
def test_a_plan_says_what_computing_in_bf16_costs(dtype: str, is_named: bool, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"base_model": str(stored_in(dtype, tmp_path)), "num_steps": 100, "batch_size": 2}
    settings |= {name: str(demo_data(f"sft_{name[:-5]}", where=name)) for name in ("train_file", "val_file")}
    warnings = plan_sft(load_sft_settings(None, settings)).warnings
    assert any("0.037 nat" in warning for warning in warnings) is is_named


def test_another_backend_computes_as_it_likes() -> None:
    assert precision_warnings(cast("Any", SimpleNamespace(backend="tinker", base_model="demo"))) == []
