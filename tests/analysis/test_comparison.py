import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from sota_ml_researcher.analysis.comparison import Comparison, compare
from sota_ml_researcher.analysis.comparison_report import as_markdown, next_experiment, settings_line, write_comparison
from sota_ml_researcher.analysis.runs import load_run
from sota_ml_researcher.core.errors import ConfigError, DataError

BASE: dict[str, Any] = {"base_model": "demo", "learning_rate": 1e-4, "lora_rank": 16, "batch_size": 8, "seed": 0}


def make(
    folder: Path, name: str, end: float, *, seed: int = 0, n: int = 200, tokens: float = 1000, **config: Any
) -> str:
    """A run that falls to ``end``. Runs share the noise of their batches, as runs on the same data order do."""
    n = 200
    shared = np.random.default_rng(5).normal(0, 0.05, n)
    own = np.random.default_rng([seed, sum(name.encode())]).normal(0, 0.005, n)
    loss = end + (2 - end) * np.exp(-np.arange(n) / (0.2 * n)) + shared + own
    path = folder / name
    path.mkdir()
    rows = [{"step": i, "train_mean_nll": float(v), "num_tokens": tokens} for i, v in enumerate(loss)]
    (path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    if config.pop("known", True):
        (path / "config.yaml").write_text(yaml.safe_dump(BASE | {"seed": seed} | config))
    return str(path)


def compared(*targets: str, metric: str | None = None) -> Comparison:
    return compare([load_run(target) for target in targets], metric)


def test_one_changed_setting_is_named_and_one_seed_is_not_called_improved(tmp_path: Path) -> None:
    found = compared(make(tmp_path, "a", 1.0), make(tmp_path, "b", 0.8, learning_rate=3e-4))
    assert settings_line(found) == "One setting changed: learning_rate: a 0.0001, b 0.0003."
    (pair,) = found.pairs
    assert pair.word == "lower"
    assert pair.difference == pytest.approx(-0.2, abs=0.02)
    assert "second seeds" in pair.reading
    assert next_experiment(found).startswith("Repeat each setting with other seeds (3 in all")


def test_pairing_shows_a_difference_smaller_than_the_noise_of_either_run(tmp_path: Path) -> None:
    # the batches' noise of 0.05 is common to both and drops out; own noise is 0.005
    (pair,) = compared(make(tmp_path, "a", 1.0), make(tmp_path, "b", 0.98, lora_rank=32)).pairs
    assert pair.floor < 0.02 < 0.05
    assert pair.word == "lower"


def test_more_than_one_change_is_confounded_and_no_cause_is_given(tmp_path: Path) -> None:
    found = compared(make(tmp_path, "a", 1.0), make(tmp_path, "b", 0.5, learning_rate=3e-4, lora_rank=64))
    assert found.config.confounded
    assert "2 settings changed, so the comparison is confounded" in settings_line(found)
    assert found.pairs[0].word == "lower" and "confounded" in found.pairs[0].reading
    assert next_experiment(found).startswith("Repeat with one change alone, first learning_rate")


def test_no_difference_is_said_to_be_none(tmp_path: Path) -> None:
    (pair,) = compared(make(tmp_path, "a", 1.0), make(tmp_path, "b", 1.0, learning_rate=2e-4)).pairs
    assert pair.word == "no difference beyond the noise"


def test_with_repeated_seeds_the_spread_between_them_decides(tmp_path: Path) -> None:
    base = [make(tmp_path, f"a{s}", 1.0 + d, seed=s) for s, d in enumerate((0.0, 0.02, -0.02))]
    better = [make(tmp_path, f"b{s}", 0.8 + d, seed=s, lora_rank=64) for s, d in enumerate((0.0, 0.02, -0.02))]
    found = compared(*base, *better)
    # ends scatter by +-0.02 about their means: sqrt((0 + 4e-4 + 4e-4) x 2 / 4) = 0.02
    assert found.seed_spread == pytest.approx(0.02, abs=0.004)
    assert [p.word for p in found.pairs[2:]] == ["improved"] * 3
    assert all("what the seed does" in p.reading for p in found.pairs[:2])
    close = [make(tmp_path, f"c{s}", 1.01 + d, seed=s, lora_rank=8) for s, d in enumerate((0.0, 0.02, -0.02))]
    assert compared(*base, *close).pairs[-1].word == "no difference beyond the noise"


def test_the_same_settings_and_the_same_data_under_another_name_are_no_change(tmp_path: Path) -> None:
    targets = [make(tmp_path, n, 1.0, seed=s, train_file=f"/{n}/t.jsonl") for s, n in enumerate("ab")]
    for name, digest in zip("ab", ("f" * 64, "f" * 64), strict=True):
        facts = {"data": {f"/{name}/t.jsonl": {"sha256": digest, "bytes": 1}}}
        (tmp_path / name / "environment.json").write_text(json.dumps(facts))
    found = compared(*targets)
    assert settings_line(found) == "The settings are the same but for the seed."
    facts = {"data": {"/b/t.jsonl": {"sha256": "0" * 64, "bytes": 1}}}
    (tmp_path / "b" / "environment.json").write_text(json.dumps(facts))
    assert list(compared(*targets).config.changed) == ["train_file"]


def test_equal_tokens_tell_a_larger_batch_from_a_better_setting(tmp_path: Path) -> None:
    # twice the tokens a step and the same curve by step: by tokens it is behind
    found = compared(make(tmp_path, "a", 1.0), make(tmp_path, "b", 1.0, tokens=2000, batch_size=16))
    (pair,) = found.pairs
    assert pair.word == "no difference beyond the noise"
    # at half its steps it has exp(-2.25) of its fall left (mean of 0.8 .. 1 of half), the first run exp(-4.5)
    assert pair.at_tokens == pytest.approx(np.exp(-2.25) - np.exp(-4.5), abs=0.03)
    assert [axis for axis, _ in found.panels] == ["step", "tokens trained"]


def test_a_lower_rank_that_falls_behind_is_short_of_capacity(tmp_path: Path) -> None:
    found = compared(make(tmp_path, "a", 0.5, lora_rank=64), make(tmp_path, "b", 1.0, lora_rank=4))
    (finding,) = found.findings
    assert finding.kind == "under_capacity"
    assert "rank 4 leaves that of rank 64" in finding.summary


def test_unknown_settings_are_said_and_no_cause_is_given(tmp_path: Path) -> None:
    found = compared(make(tmp_path, "a", 1.0), make(tmp_path, "b", 0.7, known=False))
    assert settings_line(found) == "The settings of b are not known."
    assert "no cause" in found.pairs[0].reading


def test_the_primary_metric_of_the_plan_is_compared(tmp_path: Path) -> None:
    targets = [make(tmp_path, n, 1.0, seed=s, primary_metric="num_tokens") for s, n in enumerate("ab")]
    assert compared(*targets).metric == "num_tokens"


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    a, b = make(tmp_path, "a", 1.0), make(tmp_path, "b", 1.0)
    with pytest.raises(ConfigError, match="given twice"):
        compared(a, a)
    with pytest.raises(ConfigError, match="1 runs were given"):
        compared(a)
    with pytest.raises(DataError, match=r"test/nll: a, b did not log it.*num_tokens, train_mean_nll"):
        compared(a, b, metric="test/nll")
    (tmp_path / "rl").mkdir()
    (tmp_path / "rl" / "metrics.jsonl").write_text('{"step": 0, "reward": 1}\n{"step": 1, "reward": 2}\n')
    with pytest.raises(DataError, match=r"no metric in common \(a: train_mean_nll.*rl: reward"):
        compared(a, str(tmp_path / "rl"))


def test_the_report_begins_with_the_settings(tmp_path: Path) -> None:
    found = compared(make(tmp_path, "a", 1.0), make(tmp_path, "b", 0.8, learning_rate=3e-4, kl_coef=0.1))
    written = write_comparison(found)
    text = written.report.read_text()
    assert text == as_markdown(found)
    assert text.index("learning_rate") < text.index("train_mean_nll")
    assert settings_line(found) in text and "kl_coef: a unset, b 0.1" in text
    assert "| kl_coef | unset | 0.1 |" in text and "| learning_rate | 0.0001 | 0.0003 |" in text
    assert (written.report.parent / "comparison.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_mixtures_differ_by_content_and_amounts_and_not_by_paths(tmp_path: Path) -> None:
    def run(name: str, place: str, weight: float, sha: str = "aa") -> str:
        files = {f"{place}/x.jsonl": "11", f"{place}/chat.jsonl": sha}
        sources = [{"path": path, "weight": w} for path, w in zip(files, (1.0, weight), strict=True)]
        folder = make(tmp_path, name, 1.0, train_file=sources)
        data = {path: {"sha256": digest * 32} for path, digest in files.items()}
        (Path(folder) / "environment.json").write_text(json.dumps({"data": data}))
        return folder

    first = run("a", "/here", 0.5)
    assert not compared(first, run("b", "/there", 0.5)).config.changed
    assert set(compared(first, run("c", "/here", 0.25)).config.changed) == {"train_file"}
    assert set(compared(first, run("d", "/here", 0.5, "bb")).config.changed) == {"train_file"}
