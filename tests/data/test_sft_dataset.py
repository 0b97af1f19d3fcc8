import json
from pathlib import Path

import numpy as np
import pytest

from sota_ml_researcher.core.errors import DataError
from sota_ml_researcher.data.supervised import SftData, load_sft_data
from sota_ml_researcher.models.renderers import load_renderer


def load(path: Path, model: Path, *, max_seq_len: int | None = None, skip_bad_rows: bool = False) -> SftData:
    renderer = load_renderer(str(model))
    return load_sft_data(path, renderer, batch_size=4, max_seq_len=max_seq_len, seed=7, skip_bad_rows=skip_bad_rows)


@pytest.fixture
def train_file(tmp_path: Path) -> Path:
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"q{i}", "completion": "x" * (i + 1)}) + "\n" for i in range(10)))
    return path


def rows_of(data: SftData, epoch: int = 0) -> list[bytes]:
    steps = range(epoch * len(data), (epoch + 1) * len(data))
    return [example.tokens.tobytes() for step in steps for example in data.batch(step)]


def test_every_row_is_visited_once_an_epoch_the_last_batch_included(train_file: Path, tiny_model: Path) -> None:
    data = load(train_file, tiny_model)
    assert [len(data.batch(i)) for i in range(len(data))] == [4, 4, 2]
    assert len(set(rows_of(data))) == 10


def test_the_order_depends_on_seed_and_epoch_alone(train_file: Path, tiny_model: Path) -> None:
    data, again = load(train_file, tiny_model), load(train_file, tiny_model)
    first, second = rows_of(data), rows_of(data, epoch=1)
    assert rows_of(again, epoch=1) == second != first
    assert rows_of(again) == first
    assert sorted(first) == sorted(second)


def test_rows_are_cut_at_the_limit(train_file: Path, tiny_model: Path) -> None:
    whole, cut = load(train_file, tiny_model), load(train_file, tiny_model, max_seq_len=20)
    assert max(len(e.tokens) for i in range(len(cut)) for e in cut.batch(i)) == 20
    assert cut.truncated == sum(len(e.tokens) > 20 for i in range(len(whole)) for e in whole.batch(i))
    assert all(np.isin(e.weights, [0, 1]).all() for e in cut.batch(0))


def test_a_bad_row_stops_the_load_with_its_line_unless_skipping_is_asked_for(
    train_file: Path, tiny_model: Path
) -> None:
    lines = train_file.read_text().splitlines()
    lines[4] = '{"prompt": "q", "completion": ""}'
    train_file.write_text("\n".join(lines))
    with pytest.raises(DataError, match=r'train\.jsonl:5: "completion" is empty'):
        load(train_file, tiny_model)
    data = load(train_file, tiny_model, skip_bad_rows=True)
    assert (data.rows, data.skipped) == (9, 1)


def test_a_row_with_nothing_left_to_learn_is_named(train_file: Path, tiny_model: Path) -> None:
    with pytest.raises(DataError, match=r"train\.jsonl:1: nothing to learn is left"):
        load(train_file, tiny_model, max_seq_len=5)
    with pytest.raises(DataError, match="no row can be used"):
        load(train_file, tiny_model, max_seq_len=5, skip_bad_rows=True)
