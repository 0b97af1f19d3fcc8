import asyncio
import math
import random
import re
from pathlib import Path
from typing import Any

import pytest

from sota_ml_researcher.core.errors import ConfigError, DataError
from sota_ml_researcher.rewards import math_answers, quantities
from sota_ml_researcher.rewards.answer_extraction import answer_in
from sota_ml_researcher.rewards.math_answers import is_right
from sota_ml_researcher.rewards.model_scorers import read_verdict
from sota_ml_researcher.rewards.probes import Sampled, check_reward, require_usable
from sota_ml_researcher.rewards.problems import Problem
from sota_ml_researcher.rewards.reward_config import RewardPart
from sota_ml_researcher.rewards.reward_rules import exact, fits_schema, has_tags, length_score, matches
from sota_ml_researcher.rewards.sandbox.modes import isolation
from sota_ml_researcher.rewards.scorers import Response, Score, Scorers
from sota_ml_researcher.training.rl.config import load_rl_settings

needs_sandbox = pytest.mark.skipif(isolation().mode is None, reason="no isolation here")


def problem(**row: Any) -> Problem:
    return Problem(7, ({"role": "user", "content": str(row.get("prompt", "1+1="))},), row)


def part(**given: Any) -> RewardPart:
    return RewardPart.model_validate(given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"type": "math", "pattern": "x"}, "pattern belongs to reward regex, not to math"),
        ({"type": "math", "rubric": "Good?"}, "rubric belongs to reward judge, not to math"),
        ({"type": "exact", "target_tokens": 4}, "target_tokens belongs to reward length, not to exact"),
        (
            {"type": "judge", "rubric": "Good?", "timeout_s": 5},
            "timeout_s belongs to reward math or .*, not to judge",
        ),
        ({"type": "code", "tags": ["a"]}, "tags belongs to reward format, not to code"),
    ],
)
def test_a_key_that_a_reward_does_not_read_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        part(**given)


def test_a_resolved_reward_can_be_given_again() -> None:
    for given in ({"type": "math", "timeout_s": 3}, {"type": "judge", "rubric": "Good?"}, {"type": "format"}):
        once = part(**given)
        assert part(**once.model_dump(mode="json")) == once


def scored(parts: list[RewardPart], row: Problem, *texts: str, max_tokens: int = 100) -> list[Score]:
    async def run() -> list[Score]:
        scorers = Scorers(parts, max_tokens=max_tokens)
        try:
            return await scorers.score_group(row, [Response(t, max(1, len(t))) for t in texts])
        finally:
            await scorers.close()

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("response", "gold"),
    [
        ("12", "12"),
        ("12.0", "12"),
        (" 12 ", "12"),
        ("1,234", "1234"),
        ("3+9=12", "12"),
        ("The answer is 12.", "12"),
        ("... so \\boxed{12}", "12"),
        ("first \\boxed{3}, no: \\boxed{\\frac{1}{2}}", "0.5"),
        ("$\\frac{3}{4}$", "3/4"),
        ("1 1/2", "3/2"),
        ("50%", "0.5"),
        ("50\\%", "50%"),
        ("12 cm", "12"),
        ("12\\text{ cm}", "12 cm"),
        ("-7", "\u22127"),
        ("<answer>42</answer>", "42"),
        ("#### 18", "18"),
        ("0.333333", "1/3"),
        ("\\boxed{x^2+2x+1}", "(x+1)^2"),
        ("\\boxed{\\sqrt{8}}", "2\\sqrt{2}"),
    ],
)
def test_right_answers_count_however_they_are_written(response: str, gold: str) -> None:
    assert is_right(response, gold)


@pytest.mark.parametrize(
    ("response", "gold"),
    [
        ("", "12"),
        ("13", "12"),
        ("10, 11, 12", "12"),
        ("1 2 3 4 5 6 7 8 9 10 11 12 13", "12"),
        ("it could be 11 or 12", "12"),
        ("3+9=", "12"),
        ("12 cm", "12 m"),
        ("\\boxed{}", "12"),
        ("1/0", "12"),
        ("1e999999999", "12"),
        ("0.33", "1/3"),
        ("\\boxed{x^2+1}", "(x+1)^2"),
    ],
)
def test_wrong_answers_lists_and_nonsense_do_not(response: str, gold: str) -> None:
    assert not is_right(response, gold)


def test_the_last_box_is_what_a_response_commits_to() -> None:
    assert answer_in("\\boxed{1} then \\boxed{\\frac{a}{b}}") == "\\frac{a}{b}"
    assert answer_in("") is None


def test_rules_score_as_they_say() -> None:
    assert exact(" Yes ", "yes") == 0.0
    assert exact(" Yes ", "yes", ignore_case=True) == 1.0
    assert exact("<think>no</think><answer>yes</answer>", "yes") == 1.0
    assert exact("<think>no</think>\nyes", "yes") == 1.0
    assert exact("<think><answer>yes</answer></think>no", "yes") == 0.0
    assert (matches("ab\nc", "a.*c"), matches("xabc", "abc")) == (1.0, 0.0)
    good = "<think>because</think>\n<answer>4</answer>"
    assert has_tags(good, ("think", "answer")) == 1.0
    for bad in ("<answer>4</answer>", good + "x", "<think></think><answer>4</answer>", good + good, good.upper()):
        assert has_tags(bad, ("think", "answer")) == 0.0
    schema = {"type": "object", "required": ["a"], "properties": {"a": {"type": "integer"}}}
    assert fits_schema('```json\n{"a": 1}\n```', schema) == 1.0
    assert fits_schema('{"a": "1"}', schema) == fits_schema("not json", schema) == 0.0
    assert [length_score(n, target_tokens=10, max_tokens=20) for n in (5, 10, 15, 20)] == [1.0, 1.0, 0.5, 0.0]


def test_weights_add_up_and_format_counts_a_tenth() -> None:
    parts = [part(type="math"), part(type="format", tags=["think", "answer"]), part(type="length", target_tokens=5)]
    text = "<think>1</think><answer>2</answer>"
    (found,) = scored(parts, problem(answer="2"), text, max_tokens=2 * len(text) - 5)
    assert dict(found.parts) == {"math": 1.0, "format": 1.0, "length": 0.5}
    assert found.reward == pytest.approx(1 + 0.1 + 0.5)


def test_of_many_answers_in_a_group_each_is_scored_by_itself() -> None:
    async def run() -> None:
        scorers = Scorers([part(type="math")], max_tokens=10)
        responses = [Response(f"{i}+{i + 1}={2 * i + 1}", 5) for i in range(500)]
        scores = await scorers.score_group(problem(answer="101"), responses)
        assert sum(s.reward for s in scores) == 1.0
        await scorers.close()

    asyncio.run(run())


def custom(folder: Path, source: str) -> RewardPart:
    path = folder / "my_reward.py"
    path.write_text(source)
    return part(type="custom", script=str(path), timeout_s=2.0)


@needs_sandbox
def test_a_custom_reward_gives_a_number_or_named_parts(tmp_path: Path) -> None:
    body = "print('noise')\n    return {'reward': len(response), 'bonus': row['b']}"
    source = f"def reward(prompt, response, row):\n    {body}\n"
    (found,) = scored([custom(tmp_path, source)], problem(b=3), "abcd")
    assert found.reward == 4.0
    assert dict(found.parts) == {"custom": 4.0, "custom.bonus": 3.0}


@needs_sandbox
@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def reward(prompt, response, row)\n    return 1\n", "line 1: expected ':'"),
        ("x = 1\n", "there is no function named reward"),
        ("def reward(prompt):\n    return 1\n", r"reward must take \(prompt, response, row\)"),
        ("import nonexistent_module\n", "it fails when it is loaded: line 1: ModuleNotFoundError"),
    ],
)
def test_a_reward_file_that_cannot_be_used_is_refused(tmp_path: Path, source: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        scored([custom(tmp_path, source)], problem(), "a")


@needs_sandbox
@pytest.mark.parametrize(
    ("body", "note"),
    [
        ("return float('nan')", "is nan, and a finite number is needed"),
        ("return float('inf')", "is inf"),
        ("return 'good'", "is str"),
        ("return None", "is NoneType"),
        ("return {'score': 1}", 'has no "reward"'),
        ("raise KeyError('x')", "line 2: KeyError"),
        ("while True: pass", "no answer within 2 s"),
        ("import os; os._exit(0)", "its process ended early (status 0)"),
        ("import os, signal; os.kill(os.getppid(), signal.SIGKILL)", "the scoring process ended"),
        ("open('/usr/x', 'w')", "line 2: OSError"),
        ("import socket; socket.create_connection(('1.1.1.1', 53), 1)", "line 2: OSError"),
    ],
)
def test_a_reward_that_breaks_on_a_row_is_a_failed_score_that_names_the_row(
    tmp_path: Path, body: str, note: str
) -> None:
    (found,) = scored([custom(tmp_path, f"def reward(prompt, response, row):\n    {body}\n")], problem(), "a")
    assert found.failed
    assert found.note.startswith("line 7: custom: ")
    assert note in found.note


def report_of(parts: list[RewardPart], rows: list[Problem], rewards: list[list[float]]) -> Any:
    sampled = [
        Sampled(row, [(Response("x", 1), Score(value)) for value in values])
        for row, values in zip(rows, rewards, strict=False)
    ]

    async def run() -> Any:
        scorers = Scorers(parts, max_tokens=100)
        try:
            return await check_reward(scorers, parts, rows, group_size=4, sampled=sampled)
        finally:
            await scorers.close()

    return asyncio.run(run())


def test_the_dry_run_predicts_constant_groups_and_finds_what_cheats_would_earn() -> None:
    rows = [problem(prompt=f"{i}+1=", answer=str(i + 1)) for i in range(2)]
    found = report_of([part(type="math")], rows, [[1.0, 0.0], [0.0, 0.0]])
    # half right: (1/2)^4 + (1/2)^4 = 1/8; all wrong: 1; their mean 0.5625
    assert found.constant_groups == 0.562
    assert (found.samples, found.mean) == (4, 0.25)
    assert not any(probe.suspicious for probe in found.probes)
    assert found.warnings == []
    lazy = report_of([part(type="length", target_tokens=5)], rows, [[1.0, 0.0], [0.0, 1.0]])
    assert [p.name for p in lazy.probes if p.suspicious] == ["empty answer", "prompt echoed"]


def test_a_constant_reward_is_refused_without_force() -> None:
    found = report_of([part(type="math")], [problem(answer="2")], [[0.0, 0.0, 0.0]])
    with pytest.raises(ConfigError, match="was 0 for all 3 samples of the untrained model"):
        require_usable(found, force=False)
    require_usable(found, force=True)


@needs_sandbox
def test_tests_that_fail_on_their_own_solution_are_found() -> None:
    rows = [problem(tests="assert f(1) == 2", solution="def f(x):\n    return x\n")]
    found = report_of([part(type="code")], rows, [[0.0, 1.0]])
    assert found.references_failed == [7]
    with pytest.raises(DataError, match="fail on the row's own solution"):
        require_usable(found, force=False)


def test_a_judge_s_verdict_is_its_last_score() -> None:
    assert read_verdict("Good at first (Score: 9), but wrong.\nScore: 3") == 0.3
    assert read_verdict("Score: 10/10") == 1.0
    assert read_verdict("7") == 0.7
    assert read_verdict("I cannot grade 3 of these") is None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (r"2\sqrt{3}", 2 * 3**0.5),
        (r"\frac{\sqrt{3}}{2}", 3**0.5 / 2),
        (r"1/2\sqrt3", 3**0.5 / 2),
        (r"3 - 4\sqrt{5}\pi", 3 - 4 * 5**0.5 * math.pi),
        (r"\sqrt{2}^2", 2.0),
        (r"2^{-1}", 0.5),
        (r"-2^2", -4.0),
        (r"2\pi^2", 2 * math.pi**2),
        (r"2(3+\sqrt{4})", 10.0),
        (r"\sqrt{2+\sqrt{4}}", 2.0),
        (r"3\ln 2", 3 * math.log(2)),
        (r"-\sin\left(2\pi/3\right)", -math.sin(2 * math.pi / 3)),
        *(
            (text, None)
            for text in ("xy+1", "5 cm", "1 1/2", r"\sqrt[3]{8}", "10!", "9**9", r"50\%", "e^2", "2i+1", "", "0^{-1}")
        ),
        *(
            (text, None)
            for text in (r"\log(100)", r"\ln 2x", r"\ln 3\pi", r"\sin^2(1)", r"\sinh(1)", "0xa", "σ(1)", r"\ln(-1)")
        ),
    ],
)
def test_plain_constants_are_computed_and_nothing_else_is(text: str, value: float | None) -> None:
    found = math_answers.computed(text)
    assert (found and found.value) == (None if value is None else pytest.approx(value, rel=1e-12))


@pytest.mark.parametrize(
    ("response", "gold", "right"),
    [
        (r"\boxed{2\sqrt{2}}", r"\sqrt{8}", True),
        (r"\boxed{1.414214}", r"\sqrt{2}", True),
        (r"\boxed{1.42}", r"\sqrt{2}", False),
        (r"\boxed{2\frac{1}{2}}", "2.5", True),  # a mixed number, not 21/2
        (r"\boxed{2\frac{1}{2}}", "10.5", False),
        ("2(3)", "23", False),
        ("(-2)^2", "4", True),
        ("(-2)^2", "-4", False),
        (r"\boxed{x^2-x-6}", "(x+2)(x-3)", True),
        (r"\boxed{x^2-x+6}", "(x+2)(x-3)", False),
        (r"\boxed{y^2-y-6}", "(x+2)(x-3)", False),
        (r"\boxed{[2, 5)}", "[2,5)", True),
        (r"\boxed{[2, 6)}", "[2,5)", False),
        (r"\boxed{[2, 5]}", "[2,5)", False),
        (r"\boxed{\{3,\frac{1}{2}\}}", r"\{0.5, 3\}", True),
        (r"\boxed{\{3, 4\}}", r"\{0.5, 3\}", False),
    ],
)
def test_brackets_roots_and_mixed_numbers_mean_what_they_say(response: str, gold: str, right: bool) -> None:
    assert is_right(response, gold) is right


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("(x+2)(x-3)", "x^2-x-6"),
        (r"\frac{1}{1+\sqrt{2}}", r"\sqrt{2}-1"),
        (r"\frac{x^2-1}{x-1}", "x+1"),
        (r"\sqrt{8}+\sqrt{50}", r"7\sqrt{2}"),
        (r"\sqrt{6}", r"\sqrt2\sqrt3"),
        (r"\frac{\pi}{2}", r"0.5\pi"),
        ("(x+1)^{10}", "(1+x)^9(x+1)"),
        ("y = 2x+1", "y=1+2x"),
        ("f(x)=x(x+1)", "f(x)=x^2+x"),
        (r"2+\ln(3)", r"\ln 3+2"),
        (r"\sqrt{x+\sqrt{2}}+1", r"1+\sqrt{\sqrt{2}+x}"),
        (r"2\sin(x+y)\cos(x)", r"\cos(x)*2\sin(y+x)"),
    ],
)
def test_equal_expressions_are_proved_equal_without_the_verifier(one: str, other: str) -> None:
    assert math_answers.plainly_equal(one, other) is True
    assert is_right(f"\\boxed{{{one}}}", other)
    assert math_answers.proved(one, other)  # the verifier agrees


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("x^2-x-6", "(x+2)(x-4)"),
        (r"\sqrt{\sqrt{2}+3}", r"\sqrt{3+\sqrt{3}}"),
        (r"3\sin(x)", r"2\sin(x)"),
        (r"\ln 2+1", r"1+\ln(3)"),
        ("y=2x+1", "y=1+3x"),
    ],
)
def test_expressions_that_differ_at_a_point_are_told_apart_without_the_verifier(one: str, other: str) -> None:
    assert math_answers.plainly_equal(one, other) is False
    assert not math_answers.proved(one, other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1.414214", r"\sqrt{2}"),  # a rounded number
        ("10000000x", "10000001x"),  # too close to tell by value
        ("0.3333333x", "x/3"),
        ("f(x+y)", "f(x)+f(y)"),  # a function, it seems
        ("x/0", "x/0+0"),
        ("x-x+1", "1"),
        ("(x+1)^{30}", "(1+x)^{30}"),  # too large
        (r"\sqrt{3+2\sqrt{2}}", r"1+\sqrt{2}"),
        (r"\sin(x)^2+\cos(x)^2", "1"),
        (r"\ln 4", r"2\ln 2"),
        ("x=2", "y=2"),
        ("y=2x+y", "y=3x+y"),
        ("x=1,y=2", "x=1,y=2"),
    ],
)
def test_what_arithmetic_cannot_settle_is_left_open(one: str, other: str) -> None:
    assert math_answers.plainly_equal(one, other) is None


def test_algebra_says_the_same_as_the_verifier() -> None:
    """Polynomials, quotients and roots made by chance, each beside one that is equal and one that may not be."""
    rng = random.Random(3)
    for _ in range(40):
        a, b, c = rng.randint(2, 12), rng.randint(2, 12), rng.randint(1, 3)
        shapes = [
            (f"(x+{a})(x-{b})", f"x^2+{a - b + c - 2}x-{a * b}".replace("+-", "-")),
            (f"\\frac{{x+{a}}}{{{b}}}", f"\\frac{{{c}x}}{{{c * b}}}+\\frac{{{a}}}{{{b + c - 2}}}"),
            (f"\\sqrt{{{a * b * b}}}", f"{b + c - 2}\\sqrt{{{a}}}"),
            (f"\\frac{{{a}}}{{\\sqrt{{{b}}}}}", f"\\frac{{{a}\\sqrt{{{b}}}}}{{{b + c - 2}}}"),
        ]
        one, other = rng.choice(shapes)
        settled = math_answers.plainly_equal(one, other)
        assert settled is math_answers.proved(one, other), (one, other)


def test_what_is_remembered_is_bounded_and_long_texts_are_not_kept() -> None:
    calls: list[str] = []
    remembered = quantities.remembered(lambda text: calls.append(text) or len(text))
    for text in ("short", "short", "long" * 200, "long" * 200):
        remembered(text)
    assert [len(text) for text in calls] == [5, 800, 800]


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (["math", "format"], ["math", "format"]),
        ([{"type": "math", "weight": 2}, "format"], ["math", "format"]),
        (["reward.py"], ["custom"]),
    ],
)
def test_several_rewards_may_be_named(given: list[Any], found: list[str]) -> None:
    settings = load_rl_settings(None, {"base_model": "demo", "train_file": "demo:say_train", "rewards": given})
    assert [part.type for part in settings.config.parts()] == found


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"reward_type": ["math", "format"]}, "rewards: [{type: math, weight: 1}, {type: format, weight: 0.1}]"),
        ({"reward_type": []}, "it is one check; for several write"),
        ({"rewards": []}, "it is a list of checks: write rewards: [{type: math, weight: 1}, {type: format"),
        ({"rewards": {"math": 1}}, "it is a list of checks"),
        ({"rewards": [{"format": 1}]}, "a mapping such as {type: format, weight: 1}"),
        ({"rewards": [3]}, "an entry is the name of a check, or a mapping such as"),
        ({"rewards": ["exact", "length"]}, "as an entry of rewards: {type: length, target_tokens: 200}"),
        ({"rewards": ["maths"]}, "input should be 'math', 'exact'"),
    ],
)
def test_a_list_of_rewards_that_is_none_says_what_to_write(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_rl_settings(None, {"base_model": "demo", "train_file": "demo:say_train", **given})
