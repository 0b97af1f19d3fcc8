"""The files that /plan_experiment shows are configs that the tools take."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from tool_calls import call

from sota_ml_researcher.doctrine.rules import rule
from sota_ml_researcher.doctrine.topics import read_topic
from sota_ml_researcher.server.prompts import read_command
from sota_ml_researcher.training.sft.config import SftConfig

TEXT = read_command("plan_experiment").text
TRAINING, EVALUATION = re.findall(r"(?ms)^```yaml\n(.*?)^```", TEXT)


def planned(tool: str, text: str, tmp_path: Path) -> tuple[str, dict[str, Any]]:
    path = tmp_path / "plan.yaml"
    path.write_text(text)
    failed, answer, content = call(tool, config=str(path), validate_only=True)
    assert not failed, answer
    return answer, content


def test_the_training_plan_is_a_config_that_start_sft_takes(tmp_path: Path) -> None:
    answer, _ = planned("start_sft", TRAINING, tmp_path)
    assert answer.startswith("Plan only, nothing was started.")
    settings = yaml.safe_load(TRAINING)
    assert {"hypothesis", "primary_metric", "stop_rule"} <= set(settings) <= set(SftConfig.model_fields)


def test_the_evaluation_plan_says_whether_it_sees_the_difference(tmp_path: Path) -> None:
    answer, _ = planned("run_judge_eval", EVALUATION, tmp_path)
    assert answer.startswith("Plan only, nothing was started.")
    wanted = yaml.safe_load(EVALUATION)["wanted_effect"]
    (shown,) = re.findall(r"it shows a difference of (\d\.\d+)", answer)
    assert float(shown) <= wanted


def test_a_mistyped_key_of_a_plan_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(TRAINING.replace("stop_rule", "stop_rules"))
    failed, answer, _ = call("start_sft", config=str(path), validate_only=True)
    assert failed
    assert "stop_rules" in answer and "stop_rule'" in answer


@pytest.mark.parametrize(
    "part",
    "Question Hypothesis Baseline Data Method Metric Smallest Runs Cost Stop".split(),
)
def test_the_command_asks_for_every_part_of_an_experiment(part: str) -> None:
    assert re.search(rf"(?m)^\d+\. {part}\b", TEXT)


def test_the_ladder_in_the_page_has_the_rungs_of_its_rule() -> None:
    page, value = read_topic("research_workflow"), rule("workflow.ladder").value
    rows = dict(re.findall(r"(?m)^\| (demo|smoke|small|real) \| (.*)$", page))
    assert list(rows) == ["demo", "smoke", "small", "real"]
    assert f"{value['smoke_steps']} steps" in rows["smoke"] and f"{value['smoke_share']:.0%}" in rows["smoke"]
    assert f"{value['small_steps']} steps" in rows["small"] and f"{value['small_share']:.0%}" in rows["small"]
