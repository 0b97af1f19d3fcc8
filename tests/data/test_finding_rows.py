"""The rows of each finding, by their place in the file."""

import json
from pathlib import Path
from typing import Any

from sota_ml_researcher.data.finding_kinds import BAD_ROW, KINDS
from sota_ml_researcher.data.finding_rows import finding_rows


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), encoding="utf-8")
    return path


def test_every_row_of_a_finding_is_named_not_only_those_shown(tmp_path: Path) -> None:
    rows: list[Any] = [{"prompt": f"q{i}", "completion": "lost � here"} for i in range(40)]
    rows += ["", {"prompt": "q0", "completion": "lost � here"}, "{no json", {"prompt": 1, "completion": "b"}]
    found = finding_rows(write(tmp_path / "t.jsonl", rows))
    assert found["replacement_character"].tolist() == [*range(1, 41), 42]
    assert found["exact_duplicate"].tolist() == [42]
    assert found["bad_row"].tolist() == [43, 44]
    assert set(found) <= {*KINDS, BAD_ROW}


def test_rows_of_several_files_are_counted_through(tmp_path: Path) -> None:
    for shard in ("a", "b"):
        write(tmp_path / f"{shard}.jsonl", [{"prompt": shard, "completion": "ok"}, {"prompt": "x"}])
    assert finding_rows(tmp_path)["bad_row"].tolist() == [2, 4]


def test_pairs_have_findings_of_their_own(tmp_path: Path) -> None:
    pair = {"prompt": "which?", "chosen": "good", "rejected": "bad"}
    path = write(tmp_path / "t.jsonl", [pair, {**pair, "chosen": "bad", "rejected": "good"}, pair, {"prompt": "x"}])
    found = {kind: rows.tolist() for kind, rows in finding_rows(path).items()}
    assert found == {"contradictory_pair": [2], "repeated_pair": [3], "bad_row": [4]}


def test_a_sentence_agrees_with_its_count() -> None:
    kind = KINDS["control_text"]
    assert kind.sentence(1).startswith("1 row spells a control token")
    assert kind.sentence(1200).startswith("1,200 rows spell a control token")
    assert all("{" not in kind.sentence(2) for kind in KINDS.values())
