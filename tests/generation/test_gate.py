import pytest

from sota_ml_researcher.generation.gate import Draft, fault_of, is_grounded, quoted_range, repeated
from sota_ml_researcher.generation.generation_config import GATE_RULES
from sota_ml_researcher.generation.jury import ranking
from sota_ml_researcher.generation.model_answers import Written, seed_of
from sota_ml_researcher.judges.base import JudgeUsage


def written(text: str, stop_reason: str = "stop") -> Written:
    return Written(text, stop_reason, 1, "m", JudgeUsage())


def draft(answer: str, prompt: str = "Why?", stop_reason: str = "stop", copied_from: str = "") -> Draft:
    return Draft({}, prompt, answer, written(answer, stop_reason), copied_from=copied_from)


@pytest.mark.parametrize(
    ("made", "fault"),
    [
        (draft("Because."), None),
        (draft("  \n"), "empty"),
        (draft("Because", stop_reason="length"), "cut"),
        (Draft({}, "Why?", "a", Written("a", "stop", 1, "m", JudgeUsage(), control=True)), "control"),
        (draft("I’m sorry, but I can’t help with that."), "refusal"),
        (draft("As an AI language model I have no view."), "refusal"),
        (draft("No.", stop_reason="refusal"), "refusal"),
        (draft("I cannot", stop_reason="length"), "cut"),
        (draft("As a large company they may."), None),
        (draft("Sorry business was done by them."), None),
        (draft("why is  THAT?", copied_from="Why is that?"), "copy"),
        (draft("Why is that so?\nBecause.", copied_from="Why is that so?"), "copy"),
    ],
)
def test_each_rule_finds_what_it_is_for(made: Draft, fault: str | None) -> None:
    assert fault_of(made, GATE_RULES) == fault


def test_a_rule_that_is_left_out_does_not_hold() -> None:
    assert fault_of(draft("I cannot do that."), ("empty", "cut")) is None


def test_an_earlier_row_makes_the_same_one_superfluous() -> None:
    long = "It is so because the wind has turned to the west."
    rows = [draft("yes", "a"), draft("Yes ", "A"), draft("yes", "b"), draft(long, "c"), draft(long, "d")]
    assert repeated(rows, GATE_RULES, by_prompt=False) == {1: "duplicate", 4: "one_answer"}
    assert repeated(rows, ("empty",), by_prompt=False) == {}


def test_made_prompts_that_nearly_repeat_each_other_are_superfluous() -> None:
    asked = "How many people live in the largest city of the county by the last count of the year?"
    prompts = [asked, asked.replace("year", "Year"), asked.replace("?", " today?"), "Who rules it?"]
    rows = [draft(f"{n} of them", prompt) for n, prompt in enumerate(prompts)]
    assert repeated(rows, GATE_RULES, by_prompt=True) == {1: "duplicate", 2: "duplicate"}


def test_a_quote_is_found_whatever_its_white_space_and_case() -> None:
    passage = "The river\n is (about) 300 km long."
    assert quoted_range(passage, "the River is (about)") == (0, 21)
    assert quoted_range(passage, "the river was") is None
    assert quoted_range(passage, " ") is None


@pytest.mark.parametrize(
    ("answer", "grounded"),
    [
        ("It is 300 km long.", True),
        ("It is 301 km long.", False),
        ("Yes.", True),
        ("Giraffes drank there once.", False),
    ],
)
def test_an_answer_must_rest_on_its_passage(answer: str, *, grounded: bool) -> None:
    assert is_grounded("The river is 300 km long.", answer) is grounded


def test_only_what_both_orders_say_decides() -> None:
    a_wins, b_wins = {(0, 1): "A", (1, 0): "B"}, {(0, 1): "B", (1, 0): "A"}
    assert (ranking(2, a_wins).best, ranking(2, a_wins).worst) == (0, 1)
    assert (ranking(2, b_wins).best, ranking(2, b_wins).worst) == (1, 0)
    for verdicts in ({(0, 1): "A", (1, 0): "A"}, {(0, 1): "tie", (1, 0): "tie"}, {(0, 1): "A", (1, 0): "tie"}):
        tied = ranking(2, verdicts)
        assert (tied.best, tied.undecided) == (None, 1)
    lost = ranking(2, {(0, 1): "A", (1, 0): None})
    assert (lost.best, lost.unreadable) == (None, 1)


def test_of_three_answers_in_a_circle_none_is_best() -> None:
    wins = {(0, 1), (1, 2), (2, 0)}
    verdicts = {(a, b): "A" if (a, b) in wins else "B" for a in range(3) for b in range(3) if a != b}
    assert ranking(3, verdicts).best is None


def test_a_seed_depends_on_the_place_alone() -> None:
    seeds = {seed_of(job, n, part, t) for job in (0, 1) for n in range(50) for part in ("a", "b") for t in (1, 2)}
    assert len(seeds) == 400
    assert all(0 <= seed < 2**31 - 1 for seed in seeds)
