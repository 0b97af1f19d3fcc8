"""What is written for people has the numbers of the rules that it names, and is no surer than they are."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from sota_ml_researcher.doctrine.rules import Rule, load_rules, rule

ROOT = Path(__file__).parents[2]
PAGES = sorted(ROOT.glob("doctrine/*.md"))
WRITTEN = [*PAGES, *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("skills/**/*.md")), *ROOT.glob("commands/*.md")]
RULE_ID = re.compile(r"`(?:doctrine://)?([a-z]+(?:\.[a-z0-9_]+)+)`")
WORDS = {
    **dict(zip("one two three four five six seven eight nine ten".split(), range(1, 11), strict=True)),
    **{"half": 0.5, "third": 1 / 3, "quarter": 0.25, "tenth": 0.1, "twice": 2, "sixteen": 16, "twenty": 20},
}
# Places that name a rule for something else than its value, beside numbers of their own; each must be needed.
NUMBERS_OF_THEIR_OWN = {
    ("batch_and_precision.md", "diagnosis.confounded"),
    ("diagnosis.md", "dpo.loss.start"),
    ("diagnosis.md", "judge.samples"),
    ("dpo.md", "dpo.lr"),
    ("dpo.md", "dpo.lr.norm"),
    ("judge-eval.md", "judge.control.repeat"),
    ("judge_evaluation.md", "judge.control.lean"),
    ("judge_evaluation.md", "judge.length_gap"),
    ("judge_evaluation.md", "judge.samples"),
    ("judge_evaluation.md", "judge.unscored.unequal"),
    ("judge_evaluation.md", "stats.clustered"),
    ("lora.md", "lora.capacity.tokens"),
    ("lora_variants.md", "lora.lr.rank_free"),
    ("multi_turn.md", "rl.constant_groups"),
    ("qlora.md", "qlora.bits"),
    ("reasoning.md", "rl.truncated"),
    ("rl_scaling.md", "rl.constant_groups"),
    ("rl_scaling.md", "rl.staleness"),
    ("statistics.md", "stats.resample"),
}
# What a template calls the values that a null stands for: `null is 4e-5`, `null aims at 128`.
NULL_IS = re.compile(r"(?m)^(\w+): .*# .*null (?:is|aims at) ([\d.e+-]+)")
_RL = {"lora_rank": "lora.rank.default", "batch_size": "rl.batch", "learning_rate": "rl.lr", "clip_ratio": "rl.clip"}
TEMPLATES = {
    "sft": {"batch_size": "sft.batch.default"},
    "dpo": {"lora_rank": "lora.rank.default", "batch_size": "dpo.batch", "learning_rate": "dpo.lr"},
    **dict.fromkeys(("grpo", "ppo", "rlaif"), _RL),
}


def statements(path: Path) -> Iterator[str]:
    """Each row of a table, and each sentence."""
    text = path.read_text(encoding="utf-8")
    for block in re.split(r"\n(?=\||- |\d+\. |\n)|\n\n", text):
        if block.startswith("|"):
            yield block
        else:
            yield from re.split(r"(?<=[.;])\s+(?=[A-Z])", block.replace("\n", " "))


def numbers(statement: str) -> set[float]:
    """Every number in it, in figures or words: 80%, 1,000, 4e-5, 2/3, four of five, one in ten, a tenth."""
    prose = re.sub(r"`[^`]*`|\[[^\]]*\]\[\w+\]", "", statement.lower())
    found: set[float] = set()
    for figure, percent in re.findall(r"(\d[\d,]*(?:\.\d+)?(?:e-?\d+)?)\s*(%|points)?", prose):
        value = float(figure.replace(",", ""))
        found |= {value, value / 100} if percent else {value}
    found |= {int(above) / int(below) for above, below in re.findall(r"\b(\d+)/(\d+)\b", prose) if int(below)}
    named = "|".join(WORDS)
    found |= {WORDS[part] / WORDS[whole] for part, whole in re.findall(rf"\b({named}) (?:in|of) ({named})\b", prose)}
    return found | {WORDS[word] for word in re.findall(r"[a-z]+", prose) if word in WORDS}


def says(found: set[float], value: float) -> bool:
    """Whether one of them is the value or, as in "a tenth of LoRA's rate", its inverse; to the two figures of prose."""
    return any(abs(number - wanted) <= 0.006 * abs(wanted) for number in found for wanted in (value, 1 / (value or 1)))


def contradictions(path: Path) -> set[tuple[str, str]]:
    """Statements that name a rule with one number, hold numbers, and not that one."""
    return {
        (path.name, rule_id)
        for statement in statements(path)
        for rule_id in RULE_ID.findall(statement)
        if rule_id in load_rules()
        and isinstance(value := rule(rule_id).value, int | float)
        and not isinstance(value, bool)
        and (found := numbers(statement))
        and not says(found, value)
    }


def test_the_numbers_beside_a_rule_s_name_hold_its_value() -> None:
    found = {pair for path in WRITTEN for pair in contradictions(path)}
    assert found - NUMBERS_OF_THEIR_OWN == set(), "the page, or the rule, is wrong"
    assert NUMBERS_OF_THEIR_OWN - found == set(), "no exception any more"


def test_a_wrong_number_beside_a_rule_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "Groups of one kind: over 70% (`rl.constant_groups`). A tenth is cut (`rl.truncated`).\n\n| a | b |\n"
    )
    assert contradictions(page) == {("page.md", "rl.constant_groups")}
    page.write_text("| rate | 5e-4 | `lora.lr.uncalibrated` |\n| rate | 3e-4 | `lora.lr.uncalibrated` |\n")
    assert contradictions(page) == {("page.md", "lora.lr.uncalibrated")}


GRADES = ["disputed", "low", "medium", "high"]


def grade_of(each: Rule) -> int:
    return GRADES.index("disputed" if each.status == "disputed" else each.confidence)


def graded_rows(path: Path) -> Iterator[tuple[str, str, str]]:
    """Each row of a table with a column ``sure`` that names one rule, algebra apart: its id, that cell, and the row."""
    head: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if not cells:
            head = []
        elif not head:
            head = cells
        elif (
            "sure" in head
            and "| algebra |" not in line
            and len(ids := set(RULE_ID.findall(line)) & set(load_rules())) == 1
        ):
            yield *ids, cells[head.index("sure")], line


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_a_row_is_no_surer_than_the_rule_it_names(path: Path) -> None:
    too_sure = [
        (GRADES[grade_of(rule(rule_id))], row)
        for rule_id, cell, row in graded_rows(path)
        if (said := re.match("|".join(GRADES), cell)) and GRADES.index(said[0]) > grade_of(rule(rule_id))
    ]
    assert too_sure == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_a_row_is_called_recalled_only_where_its_rule_is(path: Path) -> None:
    rows = [
        row for rule_id, cell, row in graded_rows(path) if "recalled" in cell and rule(rule_id).status != "recalled"
    ]
    assert rows == []


def test_what_a_template_says_a_null_is_is_the_rule_s_value() -> None:
    said = {
        (kind, key): (float(value), rule(rules[key]).value)  # a KeyError: say which rule it is
        for kind, rules in TEMPLATES.items()
        for key, value in NULL_IS.findall((ROOT / "templates" / f"{kind}.yaml").read_text(encoding="utf-8"))
    }
    assert {kind for kind, _ in said} == set(TEMPLATES)
    wrong = {place: (text, value) for place, (text, value) in said.items() if value not in (text, (text, text))}
    assert wrong == {}
