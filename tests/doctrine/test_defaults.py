"""Each default that names a rule has the rule's value: code, rule and page cannot drift apart."""

from typing import Any

import pytest
from pydantic import BaseModel

from sota_ml_researcher.doctrine.rules import rule
from sota_ml_researcher.evals import judge_config
from sota_ml_researcher.evals.benchmark import benchmark_config
from sota_ml_researcher.generation import generation_config as generation
from sota_ml_researcher.training.dpo import config as dpo
from sota_ml_researcher.training.rl import config as rl
from sota_ml_researcher.training.sft import config as sft

CONFIGS: list[tuple[type[BaseModel], dict[str, str]]] = [
    (sft.SftConfig, dict(sft.DEFAULT_RULES)),
    (dpo.DpoConfig, dict(dpo.DEFAULT_RULES)),
    (rl.RlConfig, dict(rl.DEFAULT_RULES)),
    (judge_config.JudgeEvalConfig, dict(judge_config.DEFAULT_RULES)),
    (generation.GenerationConfig, dict(generation.DEFAULT_RULES)),
    (benchmark_config.BenchmarkConfig, dict(benchmark_config.DEFAULT_RULES)),
]
# What a setting is called is not always what its rule calls it.
SAID_OTHERWISE: dict[str, Any] = {"advantage": "mean", "drop_constant_groups": True}
DEFAULTS = [
    pytest.param(model, key, rule_id, id=f"{model.__name__}.{key}")
    for model, rules in CONFIGS
    for key, rule_id in rules.items()
    if rule(rule_id).value is not None and model.model_fields[key].default is not None  # null: the plan asks the rule
]


@pytest.mark.parametrize(("model", "key", "rule_id"), DEFAULTS)
def test_a_default_is_its_rule_s_value(model: type[BaseModel], key: str, rule_id: str) -> None:
    default, value = model.model_fields[key].default, rule(rule_id).value
    if key in SAID_OTHERWISE:
        assert default == SAID_OTHERWISE[key]
    elif rule_id == "adam.betas":
        assert isinstance(value, tuple)
        assert default == value[int(key[-1]) - 1]
    else:
        assert default == value


@pytest.mark.parametrize("model", [model for model, _ in CONFIGS], ids=lambda model: model.__name__)
def test_every_rule_that_a_default_names_is_there(model: type[BaseModel]) -> None:
    rules = next(rules for config, rules in CONFIGS if config is model)
    assert [rule(rule_id).id for rule_id in rules.values()] == list(rules.values())
    assert set(rules) <= set(model.model_fields)
