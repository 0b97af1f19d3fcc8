"""Excess description length: synthetic runs whose bits are known from their formula, and logs of real runs."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from analysis_real_logs import LOGS
from tool_calls import call

from sota_ml_researcher.analysis.description_length import DescriptionLength, description_length, reading_of
from sota_ml_researcher.analysis.diagnosis import diagnose
from sota_ml_researcher.analysis.runs import Run, load_run
from sota_ml_researcher.doctrine.rules import rule

STEPS, TOKENS, FLOOR, ABOVE, DECAY = 200, 1000, 0.5, 2.0, 25.0
# The sum of a geometric series: ABOVE nats per token at the first step, falling by exp(-1 / DECAY) with each.
KNOWN_BITS = TOKENS * ABOVE * (1 - math.exp(-STEPS / DECAY)) / (1 - math.exp(-1 / DECAY)) / math.log(2)
DEMO = {"base_model": "demo", "backend": "embedded", "lora_rank": 32, "num_epochs": 1}


def rows(steps: int = STEPS, *, tokens: str | None = "num_loss_tokens", **changes: Any) -> list[dict[str, Any]]:
    made = [
        {
            "step": i,
            "train_mean_nll": FLOOR + ABOVE * math.exp(-i / DECAY),
            **({tokens: TOKENS} if tokens else {}),
            **changes,
        }
        for i in range(steps)
    ]
    return [*made, {"step": steps, "test/nll": FLOOR}]


def written(folder: Path, records: list[dict[str, Any]], config: dict[str, Any] | None = None) -> Run:
    folder.mkdir(exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "config.json").write_text(json.dumps(DEMO if config is None else config))
    return load_run(str(folder))


def told(run: Run) -> DescriptionLength:
    learned = description_length(run)
    assert isinstance(learned, DescriptionLength), learned
    return learned


def test_the_bits_of_an_exponential_decay_are_those_of_its_formula(tmp_path: Path) -> None:
    learned = told(written(tmp_path, rows()))
    assert learned.bits == pytest.approx(KNOWN_BITS, rel=1e-6)
    assert learned.per_parameter == pytest.approx(KNOWN_BITS / 318_592)
    assert (learned.tokens, learned.steps, learned.held_out) == (STEPS * TOKENS, STEPS, FLOOR)
    assert learned.early == pytest.approx((1 - math.exp(-20 / DECAY)) / (1 - math.exp(-STEPS / DECAY)))
    assert "0.23 bits per trained parameter (318,592)" in learned.text and "the skill is taught" in learned.text


def test_steps_of_different_length_are_weighted_by_their_tokens(tmp_path: Path) -> None:
    records = rows()
    for i, record in enumerate(records[:-1]):
        record["num_loss_tokens"] = 10 + i
    expected = sum((10 + i) * ABOVE * math.exp(-i / DECAY) for i in range(STEPS)) / math.log(2)
    assert told(written(tmp_path, records)).bits == pytest.approx(expected)


def test_noise_that_was_learned_by_heart_counts_for_nothing(tmp_path: Path) -> None:
    # Random labels: the first pass costs what unseen rows cost to the end.
    rng = np.random.default_rng(0)
    records = [
        {"step": i, "train_mean_nll": 2.3 + 0.1 * rng.standard_normal(), "num_loss_tokens": TOKENS}
        for i in range(STEPS)
    ]
    learned = told(written(tmp_path, [*records, {"step": STEPS, "test/nll": 2.3}]))
    # The standard error of the mean of 200 steps with a deviation of 0.1.
    assert learned.error == pytest.approx(STEPS * TOKENS * 0.1 / STEPS**0.5 / math.log(2), rel=0.3)
    assert not learned.is_told and "within the noise" in learned.reading

    worse = told(written(tmp_path, [*records, {"step": STEPS, "test/nll": 3.0}]))
    assert worse.bits < 0 and "overfitting, or rows of another kind" in worse.reading


def test_of_several_passes_the_first_alone_counts(tmp_path: Path) -> None:
    first = rows(epoch=0)
    later = [{"step": STEPS + i, "train_mean_nll": 0.1, "num_loss_tokens": 9, "epoch": 1} for i in range(1, STEPS)]
    learned = told(written(tmp_path, [*first, *later, {"step": 2 * STEPS, "test/nll": 0.9}]))
    assert learned.bits == pytest.approx(KNOWN_BITS)
    assert learned.passes and "the first of several passes" in learned.text


def test_trls_running_counts_of_epochs_and_tokens_are_read(tmp_path: Path) -> None:
    history = [
        {"step": i + 1, "epoch": (i + 1) / STEPS, "loss": r["train_mean_nll"], "num_tokens": TOKENS * (i + 1)}
        for i, r in enumerate(rows()[:-1])
    ]
    history.append({"step": STEPS, "epoch": 1.0, "eval_loss": FLOOR})
    (tmp_path / "trainer_state.json").write_text(json.dumps({"max_steps": STEPS, "log_history": history}))
    learned = told(load_run(str(tmp_path)))
    assert learned.bits == pytest.approx(KNOWN_BITS)
    assert learned.per_parameter is None and "prompts included, so this is too much" in learned.text


def test_a_run_from_a_checkpoint_says_that_it_counts_from_there(tmp_path: Path) -> None:
    run = written(tmp_path, rows(), {**DEMO, "load_checkpoint": "tinker://a/weights/b"})
    assert "from the checkpoint that the run began at" in told(run).text


CANNOT: list[tuple[str, list[dict[str, Any]], dict[str, Any], str]] = [
    ("no tokens", rows(tokens=None), DEMO, "there is no number of tokens per step"),
    ("no held-out loss", rows()[:-1], DEMO, "there is no held-out loss"),
    ("passes unknown", rows(), {"num_steps": STEPS}, "does not say where the first pass over the data ends"),
    ("passes unknown", rows(), {**DEMO, "num_epochs": 3}, "does not say where the first pass over the data ends"),
    ("cut at the front", rows()[50:], DEMO, "it begins at step 50, after the start"),
    ("every tenth", [*rows()[:-1:10], rows()[-1]], DEMO, "the loss is logged every 10 steps only"),
    ("holes", [*rows()[:40], *rows()[60:]], DEMO, "20 of the 200 steps of the first pass"),
    ("early validation", [*rows()[:-1], {"step": 100, "test/nll": 0.5}], DEMO, "no validation lies near step 199"),
    ("failed", [*rows()[:100], *rows(train_mean_nll=0.0)[100:]], DEMO, "the run failed at step 100"),
    ("short", rows(5), DEMO, "there is no training loss"),
    ("empty steps", rows(num_loss_tokens=0), DEMO, "some steps have no tokens"),
    ("preferences", rows(), {**DEMO, "beta": 0.1}, "only supervised runs have one"),
]


@pytest.mark.parametrize(("records", "config", "why"), [case[1:] for case in CANNOT], ids=[c[0] for c in CANNOT])
def test_a_log_that_cannot_tell_says_why(
    tmp_path: Path, records: list[dict[str, Any]], config: dict[str, Any], why: str
) -> None:
    learned = description_length(written(tmp_path, records, config))
    assert isinstance(learned, str)
    assert why in learned


def test_the_words_change_at_the_rules_values() -> None:
    limits: Any = rule("lora.capacity.edl").value
    words = [reading_of(x) for x in (0.9 * limits["elicit_least"], limits["elicit_most"], 0.5, limits["teach"])]
    assert [word.split()[0] for word in words] == ["far", "as", "more", "the"]
    assert "elicited" in words[0] and "taught" in words[2]


def test_rows_of_unequal_length_are_counted_by_token_where_the_log_has_it(tmp_path: Path) -> None:
    # Ten tokens that are learned from 3 nats to 0 beside two hundred that stay at 1: by row they look alike.
    records: list[dict[str, Any]] = []
    for step in range(STEPS):
        short = 3 * (1 - step / STEPS)
        records.append(
            {
                "step": step,
                "train_mean_nll": (short + 1) / 2,
                "train_mean_token_nll": (10 * short + 200) / 210,
                "num_loss_tokens": 210,
                "epoch": 0,
            }
        )
    records.append({"step": STEPS, "test/nll": 0.5, "test/token_nll": 200 / 210})
    learned = told(written(tmp_path / "tokens", records))
    assert learned.bits == pytest.approx(sum(10 * 3 * (1 - s / STEPS) for s in range(STEPS)) / math.log(2), rel=1e-6)
    assert not learned.by_row
    by_row = [{k: v for k, v in record.items() if "token_nll" not in k} for record in records]
    learned = told(written(tmp_path / "rows", by_row))
    assert learned.by_row and "count each row alike" in learned.text


def test_a_mixture_that_repeats_rows_has_no_first_pass(tmp_path: Path) -> None:
    mixture = {"train_file": [{"path": "a.jsonl", "epochs": 3}, {"path": "b.jsonl"}]}
    run = written(tmp_path, rows(), {**DEMO, **mixture})
    assert description_length(run) == "a pass over its mixture may have rows of a source several times"


# --- real logs ----------------------------------------------------------------------------------------------------


def test_the_real_log_of_our_own_job_counts_as_by_hand() -> None:
    folder = LOGS / "jobs-sft-healthy-0"
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [r for r in records if "train_mean_nll" in r]
    last = [r["test/nll"] for r in records if "test/nll" in r][-1]
    # It is of a version that logged the rows' weights as tokens with loss: all tokens are what is left to count.
    assert {r["num_loss_tokens"] for r in steps} == {12.0}
    coded = sum(r["train_mean_nll"] * r["num_tokens"] for r in steps)
    tokens = sum(r["num_tokens"] for r in steps)
    learned = told(load_run(str(folder)))
    assert "Tokens are all of them" in learned.text
    assert learned.bits == pytest.approx((coded - tokens * last) / math.log(2))
    assert learned.parameters == 79_648


def test_real_logs_are_told_or_say_why_not_and_never_fail() -> None:
    reasons = {description_length(load_run(str(folder.parent))) for folder in LOGS.glob("*/planted.json")}
    words = {reason for reason in reasons if isinstance(reason, str)}
    assert any("tokens per step" in word for word in words) and any("supervised" in word for word in words)
    assert sum(isinstance(reason, DescriptionLength) for reason in reasons) >= 3


# --- where it is used ---------------------------------------------------------------------------------------------


def test_analyze_run_says_what_was_learned_or_why_that_cannot_be_told(tmp_path: Path) -> None:
    written(tmp_path / "a", rows())
    failed, text, content = call("analyze_run", run=str(tmp_path / "a"))
    assert not failed
    assert "0.23 bits per trained parameter" in text and content["learned"] in text
    written(tmp_path / "b", rows(tokens=None))
    _, text, content = call("analyze_run", run=str(tmp_path / "b"))
    assert "How much it learned cannot be told: there is no number of tokens per step" in text


def test_validate_capacity_counts_by_the_pilot_where_there_is_one(tmp_path: Path) -> None:
    written(tmp_path / "pilot", rows())
    asked = {"base_model": "demo", "dataset_tokens": 2 * STEPS * TOKENS, "lora_rank": 32}
    failed, text, content = call("validate_capacity", **asked, pilot=str(tmp_path / "pilot"))
    assert not failed, text
    assert content["data_bits"] == round(2 * KNOWN_BITS)  # twice the tokens of the pilot
    assert content["capacity_bits"] == content["parameters"] == 318_592  # a bit for each, as the rule has it
    assert content["ratio"] == pytest.approx(318_592 / (2 * KNOWN_BITS), rel=1e-4)
    assert content["verdict"] == "sufficient" and "pilot run" in str(content["details"]["information"])
    assert "lora.capacity.edl" in content["details"]["rules"]
    least = content["smallest_sufficient_rank"]
    assert call("validate_capacity", **asked | {"lora_rank": least}, pilot=str(tmp_path / "pilot"))[2]["ratio"] >= 2
    assert call("validate_capacity", **asked | {"lora_rank": least - 1}, pilot=str(tmp_path / "pilot"))[2]["ratio"] < 2


def test_validate_capacity_refuses_a_pilot_that_cannot_tell(tmp_path: Path) -> None:
    asked = {"base_model": "demo", "dataset_tokens": 1000}
    written(tmp_path / "a", rows(tokens="num_tokens"))
    failed, text, _ = call("validate_capacity", **asked, pilot=str(tmp_path / "a"))
    assert failed and "its log counts all tokens, and not those with loss" in text
    failed, text, _ = call("validate_capacity", **asked, pilot="sft-nowhere")
    assert failed and "sft-nowhere" in text
    failed, text, _ = call(
        "validate_capacity", base_model="demo", train_file="demo:sft_train", measure=True, pilot=str(tmp_path / "a")
    )
    assert failed and "give one of them" in text


def test_a_plateau_of_a_run_that_learned_little_is_not_put_down_to_capacity(tmp_path: Path) -> None:
    records = rows(400, epoch=0)
    for i, record in enumerate(records[:-1]):
        record["train_mean_nll"] = 1.0 + 2.0 * math.exp(-i / 10)
        record["num_loss_tokens"] = 1_000_000 if i >= 200 else 20  # much to store, if all of it were stored
    records[-1]["test/nll"] = 1.0
    found = diagnose(written(tmp_path, records, {**DEMO, "lora_rank": 1}))
    assert "under_capacity" not in {f.kind for f in found.findings}
    records[-1].pop("test/nll")
    found = diagnose(written(tmp_path, records, {**DEMO, "lora_rank": 1}))
    assert "under_capacity" in {f.kind for f in found.findings}
