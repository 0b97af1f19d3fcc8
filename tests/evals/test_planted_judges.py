"""A judge with a known fault never gets a wrong verdict past the reader without a warning that names the fault."""

import pytest
from planted_judges import HIDDEN, PLANTED, evaluate, is_wrong, names_the_cause

from sota_ml_researcher.evals.results import BETTER, WORSE
from sota_ml_researcher.evals.verdict_text import MAX_BYTES, verdict_text


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_judge_gives_no_wrong_verdict_without_its_cause(name: str) -> None:
    planted = PLANTED[name]
    for seed in (1, 2):
        result = evaluate(planted, seed=seed)
        assert not is_wrong(planted, result) or names_the_cause(planted, result), result.warnings
        text = verdict_text(result)
        assert len(text.encode()) <= MAX_BYTES
        assert all(f"Careful: {warning}." in text for warning in result.warnings)


def test_an_honest_judge_is_believed_and_called_nothing() -> None:
    for name, wanted in (("honest, 80% right", WORSE), ("honest, all right, with labels", BETTER)):
        result = evaluate(PLANTED[name], seed=3)
        assert result.verdict == wanted
        assert not [w for w in result.warnings if HIDDEN not in w]


@pytest.mark.parametrize("name", [name for name, planted in PLANTED.items() if planted.labels >= 60])
def test_labels_that_refute_a_judge_take_its_verdict_and_say_so(name: str) -> None:
    planted = PLANTED[name]
    result = evaluate(planted, seed=4)
    if name.startswith("honest, all"):
        assert result.verdict == BETTER
        return
    assert result.verdict not in (BETTER, WORSE)
    if result.verdict == "no verdict":
        assert "people's labels do not bear the judge out" in (result.no_verdict_because or "")
        assert verdict_text(result).startswith("NO VERDICT: people's labels do not bear the judge out")
