"""From a source to checked files through a real client: what stays, what goes and why, what is never left behind."""

import gzip
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from terminal_calls import json_of, typed
from terminal_calls import refused as refused_there
from tool_calls import call

from sota_ml_researcher.core.errors import DataError, ResearcherError, StorageError
from sota_ml_researcher.core.files import sha256_of
from sota_ml_researcher.data.preparing.prepare_config import REMOVABLE, load_prepare_settings
from sota_ml_researcher.data.preparing.prepared_files import prepare
from sota_ml_researcher.data.row_files import read_rows
from sota_ml_researcher.data.supervised import load_sft_data
from sota_ml_researcher.models.renderers import load_renderer

QA = {"prompt": "question", "completion": "answer"}


def words(seed: int, count: int) -> str:
    return " ".join(f"w{(seed * 7919 + i * i * 31 + seed * i) % 9973}" for i in range(count))


def qa(i: int, **more: Any) -> dict[str, Any]:
    return {"question": words(i, 12), "answer": words(i + 10_000, 12), **more}


def write(path: Path, rows: list[Any]) -> str:
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_text("".join(line + "\n" for line in lines))
    return str(path)


def made(folder: Path, source: Any, **arguments: Any) -> dict[str, Any]:
    failed, text, content = call("prepare_dataset", source=source, output_dir=str(folder / "out"), **arguments)
    assert not failed, text
    assert content["done"]
    return content


def refused(folder: Path, source: Any, **arguments: Any) -> str:
    failed, text, _ = call("prepare_dataset", source=source, output_dir=str(folder / "out"), **arguments)
    assert failed, text
    assert "unexpected" not in text and "None" not in text
    assert not (folder / "out").exists()
    assert not list(folder.glob(".out*"))
    return text


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def card_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "out" / "card.json").read_text())


def test_rows_are_mapped_filtered_and_split_and_the_card_says_so(tmp_path: Path) -> None:
    rows: list[Any] = [qa(i, user=i % 10) for i in range(100)]
    rows += [rows[3], {**rows[4], "answer": rows[4]["answer"] + " end"}, {**qa(500), "answer": "", "user": 1}]
    rows += [{"question": "x", "user": 2}, '{"question": "cut', {**qa(501), "answer": "broken �", "user": 1}]
    source = write(tmp_path / "a.jsonl", rows)
    drop = ["replacement_character", "exact_duplicate", "near_duplicate"]
    content = made(tmp_path, source, columns=QA, split={"val": 0.1, "test": 20}, group_by="user", drop=drop)
    assert content["rows"] == {"train": 70, "val": 10, "test": 20}
    assert content["removed"] == {"bad_row": 3, "replacement_character": 1, "exact_duplicate": 1, "near_duplicate": 1}
    out = tmp_path / "out"
    files = {name: rows_of(out / f"{name}.jsonl") for name in ("train", "val", "test")}
    kept = [row for part in files.values() for row in part]
    assert all(set(row) == {"prompt", "completion", "user"} for row in kept)
    assert {row["prompt"] for row in kept} == {row["question"] for row in rows[:100]}
    users = [{row["user"] for row in part} for part in files.values()]
    assert not (users[0] & users[1] or users[0] & users[2] or users[1] & users[2])
    card = card_of(tmp_path)
    assert {name: facts["sha256"] for name, facts in card["files"].items()} == {
        path.name: sha256_of(path) for path in out.glob("*.jsonl")
    }
    assert card["sources"][source]["sha256"] == sha256_of(Path(source))
    assert [each["example"] for each in card["removed"]] == [f"a.jsonl:{n}" for n in (103, 104, 105, 106, 101, 102)]
    assert sum(each["rows"] for each in card["removed"]) + len(kept) == card["rows_read"] == 106
    readme = (out / "README.md").read_text()
    assert sha256_of(out / "test.jsonl") in readme
    assert "| 1 | near_duplicate | a.jsonl:102 |" in readme
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "out"]


def test_a_card_runs_again_to_the_same_bytes_and_says_when_its_source_has_changed(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", [qa(i) for i in range(60)])
    made(tmp_path, source, columns=QA, split={"val": 7}, max_rows=40, seed=3)
    again = {"source": str(tmp_path / "out" / "card.json"), "output_dir": str(tmp_path / "again")}
    failed, text, _ = call("prepare_dataset", **again)
    assert not failed, text
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["README.md", "card.json", "train.jsonl", "val.jsonl"]
    for name in names:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    write(tmp_path / "a.jsonl", [qa(i) for i in range(61)])
    failed, text, _ = call("prepare_dataset", **{**again, "output_dir": str(tmp_path / "third"), "seed": 4})
    assert not failed and "no longer those of the card" in text
    assert json.loads((tmp_path / "third" / "card.json").read_text())["settings"]["seed"] == 4


def test_another_seed_draws_other_rows_and_splits(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", [qa(i) for i in range(80)])
    drawn: list[str] = []
    for seed in (0, 1):
        (tmp_path / str(seed)).mkdir()
        made(tmp_path / str(seed), source, columns=QA, split={"test": 10}, max_rows=50, seed=seed)
        drawn.append((tmp_path / str(seed) / "out" / "test.jsonl").read_text())
        assert len(drawn[-1].splitlines()) == 10
    assert drawn[0] != drawn[1]


def test_nothing_leaks_between_files_where_repeats_are_kept(tmp_path: Path) -> None:
    rows = [qa(i) for i in range(40)]
    rows += [{**row, "answer": words(20_000 + i, 12)} for i, row in enumerate(rows[:20])]  # the same prompt
    rows += [{**row, "answer": row["answer"] + " end"} for row in rows[20:40]]  # alike
    rows += [{**row, "question": row["question"].upper()} for row in rows[:10]]
    long = [{"question": words(i, 12), "answer": words(i + 5, 90)} for i in range(900, 920)]
    rows += [*long, *({**row, "question": f"{row['question']} really"} for row in long)]  # alike, with other prompts
    source = write(tmp_path / "a.jsonl", rows)
    content = made(tmp_path, source, columns=QA, split={"val": 0.2, "test": 0.2}, drop=[])
    assert sum(content["rows"].values()) == 130
    openings = [
        {row["prompt"].lower() for row in rows_of(tmp_path / "out" / f"{name}.jsonl")} for name in content["rows"]
    ]
    assert sum(map(len, openings)) == len(set[str]().union(*openings)) == 80
    assert card_of(tmp_path)["groups"] == 60
    for held_out in ("val", "test"):
        files = {
            key: str(tmp_path / "out" / f"{name}.jsonl")
            for key, name in (("train_file", "train"), ("val_file", held_out))
        }
        assert call("check_dataset", **files)[2]["report"]["overlap_with_val"] == 0


def test_prepared_rows_train_on_the_tokens_of_their_source(tmp_path: Path) -> None:
    dialogs = [
        {
            "dialog": [
                {"by": "Customer", "text": words(i, 5)},
                {"by": "Agent", "text": words(i + 50, 5)},
                {"by": "Customer", "text": words(i + 100, 5)},
                {"by": "Agent", "text": f"é\u2028{i}"},
            ],
            "score": i + 1,
        }
        for i in range(12)
    ]
    columns = {
        "messages[*].role": "dialog[*].by",
        "messages[*].content": "dialog[*].text",
        "roles": {"Customer": "user", "Agent": "assistant"},
        "train_on": "last",
        "system_prompt": "Be brief.",
        "row_weight": "score",
    }
    source = write(tmp_path / "a.jsonl", dialogs)
    made(tmp_path, source, columns=columns)
    renderer = load_renderer("demo", None)
    options: dict[str, Any] = {"batch_size": 1, "max_seq_len": None, "seed": 0}
    ours = load_sft_data(tmp_path / "out" / "train.jsonl", renderer, **options)
    theirs = load_sft_data(Path(source), renderer, columns=columns, **options)
    assert ours.rows == theirs.rows == 12
    for i in range(12):
        one, other = ours.row(i), theirs.row(i)
        assert one.tokens.tolist() == other.tokens.tolist()
        assert one.weights.tolist() == other.weights.tolist()
        assert one.row_weight == other.row_weight == i + 1


def test_rows_above_the_cap_of_tokens_go(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", [qa(i) for i in range(6)] + [{"question": words(7, 80), "answer": "x"}])
    content = made(tmp_path, source, columns=QA, base_model="demo", max_tokens=250)
    assert content["removed"] == {"too_long": 1}
    assert card_of(tmp_path)["removed"][0]["example"] == "a.jsonl:7"


def test_sources_are_mixed_by_what_is_left_of_them(tmp_path: Path) -> None:
    one = write(tmp_path / "one.jsonl", [qa(i) for i in range(40)] + [qa(0)] * 5)
    two = write(
        tmp_path / "two.jsonl", [{"prompt": words(i, 9), "completion": words(i + 1, 9)} for i in range(300, 400)]
    )
    sources = [{"path": one, "weight": 0.8, "columns": QA}, {"path": two, "weight": 0.2}]
    content = made(tmp_path, sources)
    assert content["rows"] == {"train": 50}
    assert content["removed"] == {"exact_duplicate": 5, "not_taken": 90}
    prompts = Counter(row["prompt"] for row in rows_of(tmp_path / "out" / "train.jsonl"))
    assert max(prompts.values()) == 1
    assert sum(words(i, 12) in prompts for i in range(40)) == 40


def test_repeats_are_found_across_sources(tmp_path: Path) -> None:
    one = write(tmp_path / "one.jsonl", [qa(i) for i in range(20)])
    two = write(tmp_path / "two.jsonl", [qa(i) for i in range(15, 30)])
    content = made(tmp_path, [one, two], columns=QA)
    assert content["rows"] == {"train": 30}
    assert card_of(tmp_path)["removed"] == [{"reason": "exact_duplicate", "rows": 5, "example": "two.jsonl:1"}]


def test_items_of_a_benchmark_go(tmp_path: Path) -> None:
    tests = write(tmp_path / "bench.jsonl", [{"question": words(i, 30), "answer": "1"} for i in range(3)])
    rows = [qa(i) for i in range(100, 110)] + [{"question": words(1, 30), "answer": words(5, 5)}]
    source = write(tmp_path / "a.jsonl", rows)
    content = made(tmp_path, source, columns=QA, benchmark_files=[tests])
    assert (content["rows"], content["removed"]) == ({"train": 10}, {"in_benchmark": 1})
    assert set(card_of(tmp_path)["sources"]) == {source, tests}


def test_pairs_and_prompts_have_their_own_rules(tmp_path: Path) -> None:
    pairs = [{"prompt": words(i, 30), "chosen": "yes", "rejected": "no"} for i in range(20)]
    pairs += [{**pairs[0], "chosen": "no", "rejected": "yes"}, pairs[1], {**pairs[2], "chosen": "no"}]
    content = made(tmp_path, write(tmp_path / "p.jsonl", pairs))
    assert content["rows"] == {"train": 21}
    assert content["removed"] == {"bad_row": 1, "exact_duplicate": 1}
    assert content["next"].startswith("start_dpo")
    (tmp_path / "rl").mkdir()
    prompts = [{"question": words(i, 9), "answer": str(i)} for i in range(10)] + [
        {"question": words(1, 9), "answer": "1"}
    ]
    content = made(tmp_path / "rl", write(tmp_path / "r.jsonl", prompts), method="rl", split={"val": 2})
    assert content["rows"] == {"train": 8, "val": 2}
    assert rows_of(tmp_path / "rl" / "out" / "train.jsonl")[0].keys() == {"question", "answer"}
    assert content["next"].startswith("start_grpo")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"split": {"val": 0}}, "val: 0 is neither a share between 0 and 1 nor a number of rows"),
        ({"split": {"val": -0.1}}, "val: -0.1 is neither"),
        ({"split": {"val": 1.5}}, "val: 1.5 is neither"),
        ({"split": {"val": "x"}}, "split[val]: a whole number is needed or a number is needed, got 'x'"),
        ({"split": {"dev": 0.1}}, "split"),
        ({"split": {"val": True}}, "split[val]"),
        ({"split": [0.1]}, "split: a mapping (key: value) is needed"),
        ({"drop": "exact_duplicate"}, "drop: a list is needed"),
        ({"benchmark_files": ["nowhere.jsonl"]}, "benchmark_files: no such file: nowhere.jsonl"),
        ({"split": {"val": 0.5, "test": 0.5}}, "the shares leave no rows for training"),
        ({"split": {"val": 20}}, "train would be empty"),
        ({"split": {"val": 3}, "group_by": "user"}, "val would be empty: 20 rows are 2 groups"),
        ({"group_by": "usr"}, 'group_by: this row has no "usr"'),
        ({"drop": ["exact_duplicates"]}, "no finding 'exact_duplicates' to remove rows by. Did you mean"),
        ({"drop": ["in_val"]}, "no finding 'in_val' to remove rows by"),
        ({"max_tokens": 10}, "max_tokens counts tokens as a model sees them: give base_model too"),
        ({"max_tokens": 0, "base_model": "demo"}, "max_tokens: input should be greater than 0"),
        ({"max_tokens": 1, "base_model": "demo"}, "every row is filtered away (20 too_long): nothing was written"),
        ({"max_rows": -5}, "max_rows: input should be greater than 0"),
        ({"method": "ppo"}, "method: input should be 'sft', 'dpo' or 'rl'"),
        ({"method": "dpo"}, "of these 20: <untrusted-data-"),
        ({"seed": -1}, "seed: input should be greater than or equal to 0"),
        ({"columns": {"prompt": "question", "messages": "answer"}}, "say the same thing twice"),
        (
            {"columns": {"prompt": "nowhere", "completion": "answer"}},
            "every row is filtered away (20 bad_row; of these",
        ),
        ({"columns": {"prompt": "{nowhere} {question}", "completion": "answer"}}, 'this row has no "nowhere"'),
        ({"columns": {"prompt": ["question", "answer"], "completion": "answer"}}, "prompt takes one column"),
        ({"base_model": "demmo", "max_tokens": 9}, "demmo: no such model"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_written(tmp_path: Path, arguments: dict[str, Any], said: str) -> None:
    source = write(tmp_path / "a.jsonl", [qa(i, user=i % 2) for i in range(20)])
    assert said in refused(tmp_path, source, **{"columns": QA, **arguments})


def test_columns_that_are_not_ours_are_proposed(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", [qa(i) for i in range(5)])
    assert "columns: {prompt: question, completion: answer}" in refused(tmp_path, source)


def test_sources_that_cannot_be_read_are_refused_by_name(tmp_path: Path) -> None:
    good = write(tmp_path / "good.jsonl", [qa(i) for i in range(9)])
    (tmp_path / "empty.jsonl").write_text("")
    whole = gzip.compress(Path(good).read_bytes())
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    write(tmp_path / "bad.jsonl", [{"question": "x", "answer": ""}] * 3)
    for name, said in (
        ("empty.jsonl", "the file is empty"),
        ("cut.jsonl.gz", "the compressed file is cut or damaged"),
        ("bad.jsonl", "every row of bad is filtered away"),
        ("nowhere.jsonl", "no such file: nowhere.jsonl"),
    ):
        assert said in refused(tmp_path, [good, str(tmp_path / name) if "no" not in name else name], columns=QA)
    assert "good.jsonl is in two sources" in refused(tmp_path, [good, good], columns=QA)
    assert "a prepared file holds no row twice" in refused(tmp_path, [{"path": good, "epochs": 2}], columns=QA)
    assert "9 are left, and a prepared file holds no row twice" in refused(
        tmp_path, [{"path": good, "rows": 10}], columns=QA
    )
    assert "source[0][weight]: input should be greater than 0" in refused(
        tmp_path, [{"path": good, "weight": 0}], columns=QA
    )


def test_rows_that_some_lack_and_lists_of_other_depth_go_with_their_reason(tmp_path: Path) -> None:
    turns = [{"by": "user", "text": "hi"}, {"by": "assistant", "text": "hello"}]
    rows: list[Any] = [{"t": json.loads(json.dumps(turns).replace("hi", words(i, 8)))} for i in range(6)]
    rows += [{"u": 1}, {"t": [turns]}, {"t": {"by": "user"}}, {"t": [*turns, ["deeper"]]}, {"t": []}]
    columns = {"messages[*].role": "t[*].by", "messages[*].content": "t[*].text"}
    content = made(tmp_path, write(tmp_path / "a.jsonl", rows), columns=columns)
    assert content["rows"] == {"train": 6}
    assert content["removed"] == {"bad_row": 5}
    causes = [each["cause"] for each in card_of(tmp_path)["removed"]]
    assert any('this row has no "t[].by"' in cause or 'this row has no "t[*].by"' in cause for cause in causes)


def test_an_endless_line_is_a_bad_row_and_no_memory(tmp_path: Path) -> None:
    source = tmp_path / "a.jsonl"
    with source.open("w") as file:
        file.write("".join(json.dumps(qa(i)) + "\n" for i in range(5)))
        file.write('{"question": "')
        for _ in range(64):
            file.write("x" * 2**20)
        file.write('", "answer": "y"}\n' + json.dumps(qa(5)) + "\n")
    content = made(tmp_path, str(source), columns=QA)
    assert content["rows"] == {"train": 6}
    assert card_of(tmp_path)["removed"][0]["example"] == "a.jsonl:6"


def test_no_word_of_the_data_is_in_the_answer_or_the_card(tmp_path: Path) -> None:
    secret = "anna.schmidt@example.com"
    rows: list[Any] = [qa(i) for i in range(5)]
    rows += [{"question": secret, "answer": ""}, {"question": secret, "answer": 5}, f'{{"question": "{secret}"']
    rows += [{"messages": [{"role": secret, "content": secret}]}, {"question": secret, "answer": f"\ufffd {secret}"}]
    source = write(tmp_path / "a.jsonl", rows)
    failed, text, content = call(
        "prepare_dataset", source=source, output_dir=str(tmp_path / "out"), columns=QA, drop=["replacement_character"]
    )
    assert not failed, text
    for shown in (text, json.dumps(content), *((tmp_path / "out" / n).read_text() for n in ("README.md", "card.json"))):
        assert "schmidt" not in shown


def test_numbers_that_json_lacks_are_never_written(tmp_path: Path) -> None:
    rows: list[Any] = [qa(i) for i in range(4)] + ['{"question": "q", "answer": "a", "score": NaN}']
    content = made(tmp_path, write(tmp_path / "a.jsonl", rows), columns=QA)
    assert (content["rows"], content["removed"]) == ({"train": 4}, {"bad_row": 1})


def test_what_is_there_is_never_overwritten(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", [qa(i) for i in range(4)])
    for there in ("folder", "file", "link"):
        place = tmp_path / there
        place.mkdir() if there == "folder" else place.write_text("mine") if there == "file" else place.symlink_to("x")
        failed, text, _ = call("prepare_dataset", source=source, output_dir=str(place), columns=QA)
        assert failed and "this is there already, and nothing is overwritten" in text
    assert (tmp_path / "file").read_text() == "mine"
    for name in ("", " ", str(tmp_path / ("x" * 300))):
        failed, text, _ = call("prepare_dataset", source=source, output_dir=name, columns=QA)
        assert failed and "unexpected" not in text, text
    failed, text, _ = call("prepare_dataset", source=source, output_dir=str(tmp_path / "file" / "x"), columns=QA)
    assert failed and "is a file, and a folder is needed" in text


def test_of_two_at_once_exactly_one_wins(tmp_path: Path) -> None:
    sources = [write(tmp_path / f"{i}.jsonl", [qa(i * 1000 + j) for j in range(30)]) for i in range(2)]
    barrier = threading.Barrier(2)
    outcomes: list[object] = []

    def one(source: str) -> None:
        settings, _ = load_prepare_settings({"source": source, "columns": QA})
        waited: list[bool] = []

        def progress(rows: int, doing: str) -> None:
            if doing == "looking for repeats" and not waited:  # both have seen that the folder is not there
                waited.append(True)
                barrier.wait(60)

        try:
            outcomes.append(prepare(settings, tmp_path / "out", progress=progress))
        except ResearcherError as error:
            outcomes.append(error)

    threads = [threading.Thread(target=one, args=(source,)) for source in sources]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lost = [each for each in outcomes if isinstance(each, StorageError)]
    assert len(outcomes) == 2 and len(lost) == 1
    assert "this is there already" in str(lost[0])
    card = card_of(tmp_path)
    assert sha256_of(tmp_path / "out" / "train.jsonl") == card["files"]["train.jsonl"]["sha256"]
    assert not list(tmp_path.glob(".out*"))


WRITER = """
import resource, sys
from pathlib import Path
from sota_ml_researcher.data.preparing.prepared_files import prepare
from sota_ml_researcher.data.preparing.prepare_config import load_prepare_settings

limit = int(sys.argv[3])
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
settings, _ = load_prepare_settings({"source": sys.argv[1]})
prepare(settings, Path(sys.argv[2]), progress=lambda rows, doing: print(rows, doing, flush=True))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits and signals of POSIX")
def test_a_disk_that_fills_up_leaves_nothing(tmp_path: Path) -> None:
    rows = [{"prompt": words(i, 40), "completion": words(i + 1, 40)} for i in range(200)]
    source = write(tmp_path / "a.jsonl", rows)
    command = [sys.executable, "-c", WRITER, source, str(tmp_path / "out"), "20000"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "StorageError" in done.stderr and "out" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl"]


@pytest.mark.skipif(sys.platform == "win32", reason="limits and signals of POSIX")
def test_a_kill_half_way_leaves_no_folder_that_looks_finished(tmp_path: Path) -> None:
    rows = [{"prompt": words(i, 12), "completion": words(i + 1, 12)} for i in range(20_000)]
    source = write(tmp_path / "a.jsonl", rows)
    command = [sys.executable, "-c", WRITER, source, str(tmp_path / "out"), "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "rows written" in line:
                os.kill(process.pid, signal.SIGKILL)
                break
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    made(tmp_path, source)


def test_a_source_that_changes_meanwhile_is_refused(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", [{"prompt": f"q {i}", "completion": f"a {i}"} for i in range(10)])
    settings, _ = load_prepare_settings({"source": source, "drop": []})

    def progress(rows: int, doing: str) -> None:
        if doing == "looking for repeats":
            text = Path(source).read_text()
            Path(source).write_text(text.replace("q 1", "q 7"))

    with pytest.raises(DataError, match="the file changed while it was read"):
        prepare(settings, tmp_path / "out", progress=progress)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl"]


def test_every_shape_and_kind_of_file_is_taken(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [qa(i) for i in range(30)]
    (tmp_path / "data").mkdir()
    pq.write_table(pa.Table.from_pylist(rows[:10]), tmp_path / "data" / "a-0.parquet")  # pyright: ignore
    pq.write_table(pa.Table.from_pylist(rows[10:]), tmp_path / "data" / "a-1.parquet")  # pyright: ignore
    assert made(tmp_path, str(tmp_path / "data"), columns=QA)["rows"] == {"train": 30}
    sheet = "question;answer\r\n" + "".join(f"{row['question']};{row['answer']}\r\n" for row in rows)
    (tmp_path / "sheet.csv").write_bytes(b"\xef\xbb\xbf" + sheet.encode())
    (tmp_path / "b").mkdir()
    assert made(tmp_path / "b", str(tmp_path / "sheet.csv"), columns=QA)["rows"] == {"train": 30}
    ours, theirs = (rows_of(tmp_path / part / "train.jsonl") for part in ("out", "b/out"))
    assert ours == theirs == [{"prompt": row["question"], "completion": row["answer"]} for row in rows]
    assert [row.value for row in read_rows(tmp_path / "out" / "train.jsonl")] == ours


def test_a_person_at_a_terminal_checks_and_prepares(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", [qa(i) for i in range(20)])
    columns = "columns={prompt: question, completion: answer}"
    first = json_of("data", "prepare", source, str(tmp_path / "out"), columns, "split={val: 5}")
    assert first["rows"] == {"train": 15, "val": 5}
    again = typed("data", "prepare", str(tmp_path / "out" / "card.json"), str(tmp_path / "again"))
    assert again.exit_code == 0 and "train 15, val 5 of 20 rows" in again.stdout
    assert typed("data", "check", str(tmp_path / "out" / "train.jsonl"), "base_model=demo").exit_code == 0
    wrong = typed("data", "check", source, "max_seq_len=abc", "base_model=demo")
    assert wrong.exit_code != 0 and "max_seq_len: input should be a valid integer" in wrong.stderr
    one = typed("data", "check", source, f"benchmark_files={source}")
    assert "benchmark_files: input should be a valid list" in one.stderr
    unknown = typed("data", "check", source)
    assert unknown.exit_code == 1 and "columns: {prompt: question, completion: answer}" in unknown.stdout
    assert "Did you mean 'split'?" in refused_there("data", "prepare", source, "x", "splt={val: 5}", code=2)


@pytest.mark.parametrize("method", ["sft", "dpo", "rl"])
@pytest.mark.parametrize(
    ("kind", "word"), [("email_address", "maria.lopez@uni-lisboa.pt"), ("template_echo", "### Instruction:")]
)
def test_rows_of_every_method_go_by_what_their_words_hold(tmp_path: Path, method: str, kind: str, word: str) -> None:
    row = {
        "sft": lambda i, text: {"prompt": f"{text} {words(i, 12)}", "completion": words(i + 500, 12)},
        "dpo": lambda i, text: {"prompt": f"{text} {words(i, 9)}", "chosen": words(i + 500, 9), "rejected": "no"},
        "rl": lambda i, text: {"prompt": f"{text} {words(i, 12)}", "answer": str(i)},
    }[method]
    source = write(tmp_path / "a.jsonl", [*(row(i, "please") for i in range(6)), row(7, f"please\n{word}\n")])
    content = made(tmp_path, source, method=method, drop=[kind])
    assert (content["removed"], content["rows"]["train"]) == ({kind: 1}, 6)


@pytest.mark.parametrize(("method", "kind"), [("dpo", "length_outlier"), ("rl", "one_answer"), ("rl", "cut_sentence")])
def test_what_is_not_looked_for_in_a_method_cannot_be_dropped(tmp_path: Path, method: str, kind: str) -> None:
    rows = {"dpo": {"prompt": "a b", "chosen": "c d", "rejected": "e"}, "rl": {"prompt": "a b", "answer": "c"}}[method]
    source = write(tmp_path / "a.jsonl", [rows])
    assert f"drop: {kind} is not looked for in rows of {method}" in refused(
        tmp_path, source, method=method, drop=[kind]
    )


def test_every_finding_can_be_removed_by_its_id(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", [qa(i) for i in range(5)] + [{**qa(9), "answer": "bad \x07"}])
    content = made(tmp_path, source, columns=QA, base_model="demo", drop=list(REMOVABLE))
    assert content["removed"]["control_character"] == 1


def test_slow_work_is_waited_for_with_the_same_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sota_ml_researcher.data.preparing import prepared_files as preparing
    from sota_ml_researcher.tools import background

    source = write(tmp_path / "a.jsonl", [qa(i) for i in range(5)])
    begun, go_on = threading.Event(), threading.Event()
    slow = preparing.take_in

    def waits(*given: Any, **named: Any) -> None:
        begun.set()
        assert go_on.wait(60)
        slow(*given, **named)

    monkeypatch.setattr(preparing, "take_in", waits)
    monkeypatch.setattr(background.run_in_background, "__kwdefaults__", {"patience_s": 0.3})
    arguments: dict[str, Any] = {"source": source, "output_dir": str(tmp_path / "out"), "columns": QA}
    _, text, content = call("prepare_dataset", **arguments)
    assert not content["done"] and begun.is_set() and "Call this tool again" in text
    go_on.set()
    deadline = time.monotonic() + 60
    while not content["done"]:
        assert time.monotonic() < deadline
        _, text, content = call("prepare_dataset", **arguments)
    assert content["rows"] == {"train": 5}
    failed, text, _ = call("prepare_dataset", **arguments)
    assert failed and "nothing is overwritten" in text
