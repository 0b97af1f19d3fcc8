"""Answers to mathematical questions: what is equal scores 1 however it is written, and what is not scores 0."""

import json
from pathlib import Path

import pytest

from sota_ml_researcher.rewards.answer_extraction import gold_in
from sota_ml_researcher.rewards.math_answers import endless, is_right

# Response, right answer, and whether it is right.
ANSWERS = json.loads((Path(__file__).parent / "math_answers.json").read_text())
# Rows of GSM8K (OpenAI, MIT licence).
GSM8K = [json.loads(line) for line in (Path(__file__).parent / "gsm8k_sample.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("response", "gold", "right"), ANSWERS)
def test_equal_answers_are_right_and_different_ones_are_not(response: str, gold: str, right: int) -> None:
    assert is_right(response, gold) is bool(right)


def test_gsm8k_s_own_answers_are_right_and_near_misses_wrong() -> None:
    """Rows whose working holds equations on the last line, signs, commas and units."""
    for row in GSM8K:
        gold, number = row["answer"], gold_in(row["answer"])
        value = float(number.replace(",", ""))
        for response in (
            gold,
            f"#### {number}",
            f"The answer is {number}.",
            f"\\boxed{{{number}}}",
            f"So\n**{number}**",
        ):
            assert is_right(response, gold), (response, gold)
        for near in (value + 1, -value or 5.0, value * 10 or 7.0):
            assert not is_right(f"\\boxed{{{near:.1f}}}", gold), (near, gold)


@pytest.mark.parametrize(
    "text",
    [
        "10^{10^{10}}",
        "10 ^ 10 ^ 10",
        "1000000000!",
        "((10!)!)!",
        "9**9**9**9",
        "2^{2^{2^{2^{2^2}}}}",
        "\\binom{1000000000}{500000000}",
        "\\frac{10^{10^{10}}}{3}",
        "2^{100000!}",
        "10^{-10^{10}}",
        "(" * 500 + "1" + ")" * 500,
        "1" * 100_000,
    ],
)
def test_what_takes_forever_to_work_out_is_wrong_without_being_worked_out(text: str) -> None:
    assert endless(text)
    assert not is_right(f"\\boxed{{{text}}}", "12")
    assert not is_right("\\boxed{12}", text)


@pytest.mark.parametrize("text", ["5!", "(n+1)!", "2^{100}", "x^{2n}", "\\binom{10}{3}", "2^{2^3}", "(3)!", "e^{x^2}"])
def test_what_ends_is_worked_out(text: str) -> None:
    assert not endless(text)
    assert is_right(f"\\boxed{{{text}}}", text)


def test_the_verifier_s_time_ends_as_a_wrong_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sota_ml_researcher.rewards.math_answers._VERIFY_S", 0.05)
    assert not is_right("\\boxed{(x+1)^{1000}}", "(x+2)^{999}")
