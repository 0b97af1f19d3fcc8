"""Advantages and the losses' settings, against references written from the papers."""

import math
import statistics
from typing import Any

import pytest

from sota_ml_researcher.core.errors import ConfigError, DataError
from sota_ml_researcher.doctrine.rules import rule
from sota_ml_researcher.rewards.problems import load_problems
from sota_ml_researcher.rewards.reward_rules import overlong_penalty
from sota_ml_researcher.training.rl import config
from sota_ml_researcher.training.rl.advantages import group_advantages
from sota_ml_researcher.training.rl.config import RlConfig, load_rl_settings
from sota_ml_researcher.training.rl.method import loss_settings

BASE = {"base_model": "demo", "train_file": "demo:rl_train", "reward_type": "math"}


@pytest.mark.parametrize("rewards", [[0.0, 1.0, 1.0, 0.0, 1.0], [0.3, -2.0, 5.5], [1.0, 1.0, 1.0]])
def test_advantages_are_those_of_the_papers(rewards: list[float]) -> None:
    mean = statistics.fmean(rewards)
    dr_grpo = [r - mean for r in rewards]
    grpo = [(r - mean) / (statistics.stdev(rewards) + 1e-4) for r in rewards]  # TRL's GRPOTrainer, scale_rewards
    assert group_advantages(rewards, "mean").tolist() == pytest.approx(dr_grpo, abs=1e-5)
    assert group_advantages(rewards, "grpo").tolist() == pytest.approx(grpo, rel=1e-5, abs=1e-5)


def test_the_overlong_penalty_falls_linearly_over_its_buffer() -> None:
    # DAPO eq. 13: 0 up to L_max - L_cache, (L_max - L_cache - |y|) / L_cache within it, -1 beyond
    assert [overlong_penalty(n, max_tokens=100, buffer=20) for n in (10, 80, 85, 90, 100, 120)] == pytest.approx(
        [0, 0, -0.25, -0.5, -1, -1]
    )


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {}),
        ({"loss_fn": "ppo", "clip_ratio": 0.2}, {"clip_low_threshold": 0.8, "clip_high_threshold": 1.2}),
        ({"loss_fn": "ppo", "clip_ratio": (0.2, 0.28)}, {"clip_low_threshold": 0.8, "clip_high_threshold": 1.28}),
        ({"loss_fn": "cispo", "clip_ratio": (0, 4)}, {"clip_low_threshold": 0, "clip_high_threshold": 4}),
        (
            {"loss_fn": "gspo", "clip_ratio": (3e-4, 4e-4)},
            {"clip_low_threshold": 0.9997, "clip_high_threshold": 1.0004},
        ),
        ({"loss_fn": "dro", "dro_beta": 0.1}, {"beta": 0.1}),
    ],
)
def test_clip_ranges_reach_the_platform_as_thresholds(changes: dict[str, Any], expected: dict[str, float]) -> None:
    found = loss_settings(load_rl_settings(None, {**BASE, **changes}).config)
    assert dict(found) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"group_size": 1}, "a group of 1 has nothing to be compared with"),
        ({"reward_type": None}, "give either reward_type or rewards"),
        ({"rewards": [{"type": "math"}]}, "give either reward_type or rewards"),
        ({"reward_type": None, "rewards": [{"type": "regex"}]}, "reward regex needs pattern"),
        ({"reward_type": None, "rewards": [{"type": "regex", "pattern": "("}]}, "pattern is no regular expression"),
        ({"reward_type": "custom"}, "reward custom needs script"),
        ({"clip_ratio": 0.2}, "clip_ratio belongs to loss_fn"),
        ({"loss_fn": "cispo", "clip_ratio": (0.2, 0.28)}, "of cispo is the lowest and highest weight"),
        ({"overlong_buffer_tokens": 256}, "must be smaller than max_response_tokens"),
        ({"lr_schedule": "linear"}, "the loop keeps the learning rate constant"),
        ({"reward_typ": "math"}, "Did you mean 'reward_type'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_rl_settings(None, {**BASE, **changes})


def test_defaults_are_the_rules_values() -> None:
    fields = RlConfig.model_fields
    for key in ("group_size", "temperature", "kl_coef", "num_substeps"):
        assert fields[key].default == rule(config.DEFAULT_RULES[key]).value, key
    assert fields["loss_fn"].default == rule("rl.loss").value


def test_a_row_without_what_its_check_needs_is_named(tmp_path: Any) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text('{"prompt": "1+1=", "answer": "2"}\n{"prompt": "1+2="}\n')
    parts = load_rl_settings(None, BASE).config.parts()
    with pytest.raises(DataError, match=r'train\.jsonl:2: reward math needs "answer"'):
        load_problems(path, parts)
    assert len(load_problems(path, parts, skip_bad_rows=True)) == 1
    assert math.isclose(len(load_problems(path, [])), 2)
