"""Checks against a reference, which judge without a model."""

import pytest

from sota_ml_researcher.evals.controls import load_canaries
from sota_ml_researcher.evals.inputs import _decidable
from sota_ml_researcher.judges.judge_catalog import parse_judge
from sota_ml_researcher.judges.local_judges import CHECKS, check_number


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        ("He gains $70,000.", "70000", True),
        ("70000.0", "70,000", True),
        ("It is -3.", "-3", True),
        ("\u22123", "-3", True),
        ("-$5", "-5", True),
        ("3 - 4 = -1", "-1", True),
        ("= .5", "0.5", True),
        ("-.5", "-0.5", True),
        ("1,234", "1234", True),
        ("the range 10-12", "12", True),
        ("7.", "7", True),
        ("3.5", "3.50", True),
        ("1000", "1e3", True),
        ("5%", "5", True),
        ("-3", "3", False),
        ("3", "-3", False),
        ("20. (see step 3)", "20", False),
        ("none", "5", False),
    ],
)
def test_the_last_numbers_are_compared(answer: str, reference: str, right: bool) -> None:
    assert check_number(answer, reference) is right


@pytest.mark.parametrize(("check", "fewest"), [("exact", 8), ("includes", 6), ("number", 2)])
def test_a_check_is_calibrated_by_pairs_that_it_can_tell_apart(check: str, fewest: int) -> None:
    canaries = _decidable(load_canaries(None), [parse_judge(f"check:{check}")])
    assert len(canaries) >= fewest
    for canary in canaries:
        assert CHECKS[check](canary.good, str(canary.item.reference))
        assert not CHECKS[check](canary.bad, str(canary.item.reference))
