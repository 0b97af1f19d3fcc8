from pathlib import Path
from typing import Any

import pytest

from sota_ml_researcher.core.errors import ConfigError, DataError
from sota_ml_researcher.doctrine.rules import rule
from sota_ml_researcher.training.dpo.config import load_dpo_settings
from sota_ml_researcher.training.dpo.plan import plan_dpo

BASE = {"base_model": "demo", "train_file": "demo:dpo_train", "val_file": "demo:dpo_val"}


def test_the_plan_derives_what_was_left_out_from_the_rules() -> None:
    plan = plan_dpo(load_dpo_settings(None, BASE))
    config = plan.settings.config
    assert plan.rows == 400
    assert config.learning_rate == rule("dpo.lr").value
    assert config.num_epochs == rule("dpo.epochs").value
    assert config.batch_size == 4  # 400 pairs in at least 100 steps
    assert plan.settings.origins["batch_size"].rule == "sft.steps.min"
    assert plan.total_steps == 100


@pytest.mark.parametrize(
    ("loss", "beta", "rate"), [("dpo", "dpo.beta", "dpo.lr"), ("dpo_norm", "dpo.beta.norm", "dpo.lr.norm"),
                               ("ipo", "dpo.beta.ipo", "dpo.lr")]
)  # fmt: skip
def test_each_loss_has_a_beta_and_a_rate_of_its_own(loss: str, beta: str, rate: str) -> None:
    settings = plan_dpo(load_dpo_settings(None, {**BASE, "loss": loss})).settings
    assert (settings.config.beta, settings.config.learning_rate) == (rule(beta).value, rule(rate).value)
    assert settings.origins["beta"].rule == beta
    given = plan_dpo(load_dpo_settings(None, {**BASE, "loss": loss, "beta": 0.3})).settings
    assert given.config.beta == 0.3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": "ipo", "label_smoothing": 0.1}, "label_smoothing belongs to loss"),
        ({"label_smoothing": 0.5}, "label_smoothing"),
        ({"beta": 0}, "beta"),
        ({"ref_model": "sft-123"}, "ref_model must be null, 'base' or a tinker:// sampler path"),
        ({"bata": 0.1}, "Did you mean 'beta'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_dpo_settings(None, {**BASE, **changes})


def test_a_pair_without_a_preference_is_named_by_its_line(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"prompt":"a","chosen":"b","rejected":"c"}\n{"prompt":"a","chosen":"b","rejected":"b"}\n')
    with pytest.raises(DataError, match=r"pairs\.jsonl:2: chosen and rejected are the same"):
        plan_dpo(load_dpo_settings(None, {**BASE, "train_file": str(path)}))
