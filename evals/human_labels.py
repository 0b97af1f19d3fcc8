"""People's verdicts on a part of the prompts: how far to trust the judge, and the win rate corrected for its errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..core.errors import DataError
from ..data.row_files import at_line, read_rows
from ..judges.prompt import EvalItem, prompt_key
from .test_set import conversation

WINNERS = ("baseline", "tuned", "tie")


def read_labels(path: Path, items: Sequence[EvalItem]) -> dict[str, str]:
    """People's winner by item id. Labels of prompts that are not in this evaluation are left out.

    Raises:
        DataError: For a row without ``winner`` or without ``id`` or prompt, or when no label fits a prompt.
    """
    by_prompt = {item.prompt_key: item.id for item in items}
    ids = {item.id for item in items}
    found: dict[str, str] = {}
    for row in read_rows(path):
        if row.value is None:
            raise row.problem or DataError("not a readable row", where=f"{path.name}:{row.number}")
        winner = row.value.get("winner")
        if winner not in WINNERS:
            raise DataError(
                f'"winner" is {winner!r}', where=f"{path.name}:{row.number}", fix=f"Use one of {', '.join(WINNERS)}"
            )
        given = row.value.get("id")
        if given in (None, ""):
            try:
                given = by_prompt.get(prompt_key(conversation(row.value)[0]))
            except DataError as error:
                raise at_line(path, row.number, error) from error
        if str(given) in ids:
            found[str(given)] = str(winner)
    if not found:
        raise DataError("no label belongs to a prompt of this evaluation", where=path.name, fix="Name ids or prompts")
    return found


def against_people(effects: Mapping[str, float], labels: Mapping[str, str], arm: str) -> dict[str, Any] | None:
    """The judge against people on the items both decided, and the corrected share of decided items that ``arm`` won."""
    from .statistics.agreement import judge_accuracy, rogan_gladen

    decided = [item for item in effects if effects[item] != 0.5]
    both = [item for item in decided if labels.get(item) in {arm, "baseline"}]
    if not both:
        return None
    accuracy = judge_accuracy([effects[i] > 0.5 for i in both], [labels[i] == arm for i in both])
    corrected = rogan_gladen(sum(effects[i] > 0.5 for i in decided), len(decided), accuracy)
    return {
        "labelled": len(both),
        "agreement": sum((effects[i] > 0.5) == (labels[i] == arm) for i in both) / len(both),
        "true_positive_rate": accuracy.true_positive_rate,
        "true_negative_rate": accuracy.true_negative_rate,
        "corrected_share_of_decided": None
        if corrected is None
        else {"rate": corrected.rate, "raw": corrected.raw, **dict(corrected.interval._asdict())},
    }
