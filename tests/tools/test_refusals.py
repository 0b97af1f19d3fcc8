"""Every tool that starts a job refuses what cannot run before there is a job."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest
from eval_helpers import sums, write_lines
from tinker_servers import scripted, skyrl
from tool_calls import call

from sota_ml_researcher.jobs.kinds import KINDS
from sota_ml_researcher.jobs.registry import Registry
from sota_ml_researcher.tools import TOOLS
from sota_ml_researcher.tools.plan_gate import require_models

PLACE = {"backend": "cluster", "base_url": "http://127.0.0.1:9"}  # nobody listens there


def sft(_: Path) -> dict[str, Any]:
    return {"base_model": "demo", "train_file": "demo:sft_train"}


def dpo(_: Path) -> dict[str, Any]:
    return {"base_model": "demo", "train_file": "demo:dpo_train"}


def reward_model(_: Path) -> dict[str, Any]:
    return {"base_model": "demo", "train_file": "demo:dpo_train", "loss": "reward_model"}


def grpo(_: Path) -> dict[str, Any]:
    return {"base_model": "demo", "train_file": "demo:say_train", "reward_type": "exact", "max_response_tokens": 8}


def judge_eval(folder: Path) -> dict[str, Any]:
    return sums(folder, 3) | {"judge_model": "check:exact", "finetuned_model": "demo"}


def benchmark(folder: Path) -> dict[str, Any]:
    task = write_lines(folder / "task.jsonl", [{"prompt": "a", "answer": "b"}])
    return {"task": str(task), "model": "demo", "scorer": "exact"}


CASES = [
    ("start_sft", sft),
    ("start_dpo", dpo),
    ("start_dpo", reward_model),
    ("start_grpo", grpo),
    ("run_judge_eval", judge_eval),
    ("run_benchmark", benchmark),
]
every_tool = pytest.mark.parametrize(("tool", "config"), CASES, ids=[c[1].__name__ for c in CASES])


@every_tool
def test_missing_packages_are_named_and_no_job_is_left(
    tool: str, config: Callable[[Path], dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "tinker" else found(name))
    failed, text, _ = call(tool, overrides=config(tmp_path))
    assert failed
    assert "needs packages that are not installed (tinker)" in text
    assert Registry().find() == []


@every_tool
def test_a_backend_that_does_not_answer_is_said_and_no_job_is_left(
    tool: str, config: Callable[[Path], dict[str, Any]], tmp_path: Path
) -> None:
    failed, text, _ = call(tool, overrides=config(tmp_path) | PLACE)
    assert failed
    assert "http://127.0.0.1:9: no answer" in text
    assert Registry().find() == []


def test_an_evaluation_of_files_needs_no_training_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name in {"tinker", "scipy"} else found(name))
    failed, text, _ = call("run_judge_eval", overrides=sums(tmp_path, 3) | {"judge_model": "check:exact"})
    assert failed
    assert "(scipy). Run once: " in text and " setup" in text
    assert Registry().find() == []


@pytest.mark.parametrize(("verb", "flag"), [("trains", "trainable"), ("samples", "sampleable")])
def test_a_model_that_the_backend_does_not_take_is_refused(
    verb: str, flag: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sota_ml_researcher.backends.connection import SupportedModel
    from sota_ml_researcher.core.errors import ModelError

    flags = {"trainable": None, "sampleable": None, flag: False}
    served = [SupportedModel("org/one", None, **flags), SupportedModel("org/two", None, None, None)]
    monkeypatch.setattr("sota_ml_researcher.tools.plan_gate.supported_models", lambda _: served)
    require_models("cluster", "http://x", **{verb: ["org/two"]})
    for name in ("org/one", "org/three"):
        with pytest.raises(ModelError, match=f"{name}: cluster does not {verb[:-1]} this model. It serves: org/one"):
            require_models("cluster", "http://x", **{verb: [name]})


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_job_names_its_tool_and_functions_that_exist(kind: str) -> None:
    assert KINDS[kind].tool in {spec.function.__name__ for spec in TOOLS}
    assert callable(resolve_name(KINDS[kind].load))
    assert callable(resolve_name(KINDS[kind].plan))
    assert callable(resolve_name(KINDS[kind].run))


@every_tool
def test_on_a_backend_with_prices_every_job_is_planned_first(
    tool: str, config: Callable[[Path], dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prices = tmp_path / "prices.yaml"
    prices.write_text("backends: {cluster: {models: {}}}\n")
    monkeypatch.setenv("ML_RESEARCHER_PRICES", str(prices))
    monkeypatch.setattr("sota_ml_researcher.tools.plan_gate.require_models", lambda *_, **__: None)
    with scripted(skyrl("demo")) as url:
        failed, text, content = call(tool, overrides=config(tmp_path) | PLACE | {"base_url": url})
    assert not failed, text
    assert content["job_id"] is None and content["plan_id"].startswith("plan-")
    assert Registry().find() == []
