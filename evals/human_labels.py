"""People's verdicts on a part of the prompts, by which the judges are measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..core.errors import DataError
from ..judges.prompt import EvalItem, prompt_key
from .test_set import conversation, read_each

WINNERS = ("baseline", "tuned", "tie")


def read_labels(path: Path, items: Sequence[EvalItem]) -> dict[str, str]:
    """People's winner by item id. Labels of prompts that are not in this evaluation are left out.

    Raises:
        DataError: For a row without ``winner`` or without ``id`` or prompt, or when no label fits a prompt.
    """
    by_prompt = {item.prompt_key: item.id for item in items}

    def label(row: Mapping[str, Any], number: int) -> tuple[str, str]:
        winner, item = row.get("winner"), row.get("id")
        if winner not in WINNERS:
            raise DataError(f'"winner" is {winner!r}', fix=f"Use one of {', '.join(WINNERS)}")
        if item in (None, ""):
            item = by_prompt.get(prompt_key(conversation(row)[0]))
        return str(item), str(winner)

    ids = {item.id for item in items}
    labels = {item: winner for item, winner in read_each(path, label) if item in ids}
    if not labels:
        raise DataError("no label belongs to a prompt of this evaluation", where=path.name, fix="Name ids or prompts")
    return labels
