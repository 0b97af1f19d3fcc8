"""What only the whole file shows, and that sound files show nothing."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from sound_rows import sound_rows

from sota_ml_researcher.data.check import check_dataset, check_rows
from sota_ml_researcher.models.renderers import load_renderer


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def rows_of(path: Path, kind: str) -> list[int]:
    return check_rows(path).rows.get(kind, []).tolist() if kind in check_rows(path).rows else []


@pytest.mark.parametrize("seed", range(3))
def test_sound_rows_of_many_kinds_have_no_findings(tmp_path: Path, tiny_model: Path, seed: int) -> None:
    path = write(tmp_path / "t.jsonl", sound_rows(1000, seed))
    report = check_dataset(path, renderer=load_renderer(str(tiny_model)))
    # Letters and lists share most of their words on purpose, which near duplicates are.
    assert {f.kind: f.message for f in report.findings if f.kind not in {"near_duplicate", "not_round_trip"}} == {}


def test_one_long_answer_to_many_prompts_is_found_and_a_label_is_not(tmp_path: Path) -> None:
    rows = sound_rows(300, 5)
    canned = "I am sorry, but I can only help with questions about orders and invoices."
    rows += [{"prompt": f"Where is parcel number {i}?", "completion": canned} for i in range(20)]
    rows += [{"prompt": f"Is {i} even or odd?", "completion": "odd" if i % 2 else "even"} for i in range(300)]
    assert rows_of(write(tmp_path / "t.jsonl", rows), "one_answer") == list(range(301, 321))
    constant = [{"prompt": f"Is {i} prime?", "completion": "no" if i else "yes"} for i in range(60)]
    assert rows_of(write(tmp_path / "c.jsonl", constant), "one_answer") == list(range(2, 61))


def test_answers_that_end_unlike_their_peers_are_found(tmp_path: Path) -> None:
    whole = "The harbour was rebuilt after the flood. The town grew around it. Ships came from the north. " * 3
    rows = [{"prompt": f"question number {i}", "completion": f"{i} {whole}".strip()} for i in range(200)]
    rows.append({"prompt": "cut", "completion": whole + "Many years later the old fisherman told his young"})
    rows.append({"prompt": "letter", "completion": whole + "With kind regards and best wishes, your old friend"})
    assert rows_of(write(tmp_path / "t.jsonl", rows), "cut_sentence") == [201]
    # Where nobody ends sentences, nothing was cut.
    open_ended = [{**row, "completion": row["completion"].rstrip(".")} for row in rows]
    assert rows_of(write(tmp_path / "o.jsonl", open_ended), "cut_sentence") == []


def test_many_answers_at_the_greatest_length_are_found(tmp_path: Path, tiny_model: Path) -> None:
    rng = random.Random(0)
    lengths = [rng.randint(5, 190) for _ in range(400)]
    rows = [{"prompt": f"q{i}", "completion": "abcd"[i % 4] * min(n, 150)} for i, n in enumerate(lengths)]
    renderer = load_renderer(str(tiny_model))
    found = check_rows(write(tmp_path / "t.jsonl", rows), renderer=renderer).rows
    free = [{"prompt": f"q{i}", "completion": "abcd"[i % 4] * n} for i, n in enumerate(lengths)]
    assert "answer_cap" not in check_rows(write(tmp_path / "f.jsonl", free), renderer=renderer).rows
    assert found["answer_cap"].tolist() == [i for i, n in enumerate(lengths, 1) if n >= 150]


def test_strays_in_another_language_are_found_and_a_mixture_is_not(tmp_path: Path) -> None:
    german = "Der Fluss ist im Frühling sehr breit und das Wasser wird nicht warm, wie die Leute auch sagen."
    japanese = "川は春にとても広くなり、水は冷たいままです。人々は犬と一緒に橋を渡ります。"
    rows = [row for row in sound_rows(400, 7) if "Deutsche" not in row["prompt"]]
    strays = [{"prompt": german, "completion": german + " Ja."}, {"prompt": japanese, "completion": japanese}]
    path = write(tmp_path / "t.jsonl", rows + strays)
    (finding,) = [f for f in check_dataset(path).findings if f.kind == "other_language"]
    assert finding.lines == [len(rows) + 1, len(rows) + 2]
    assert "most are English; German 1, Japanese 1" in finding.message
    half = [{"prompt": f"{i} {german}", "completion": german} for i in range(200)]
    assert rows_of(write(tmp_path / "m.jsonl", rows + half), "other_language") == []


def test_a_row_of_many_documents_is_a_length_outlier(tmp_path: Path) -> None:
    rows = sound_rows(300, 9)
    rows.append({"prompt": "all", "completion": " ".join(row["completion"] for row in rows)})
    assert rows_of(write(tmp_path / "t.jsonl", rows), "length_outlier") == [301]
