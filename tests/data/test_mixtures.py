"""What a pass takes of each source, and that the seed alone decides which rows and in what order."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sota_ml_researcher.core.errors import ConfigError
from sota_ml_researcher.data.mixtures import Mix, Source, Sources, pass_order, require_apart, resolved
from sota_ml_researcher.training.dpo.config import load_dpo_settings
from sota_ml_researcher.training.rl.config import load_rl_settings
from sota_ml_researcher.training.sft.config import load_sft_settings


def sources(*amounts: dict[str, Any]) -> Sources:
    return tuple(Source(path=f"{i}.jsonl", **amount) for i, amount in enumerate(amounts))


@pytest.mark.parametrize(
    ("amounts", "sizes", "taken"),
    [
        ([{}, {}], [10, 3], [10, 3]),
        ([{"weight": 0.9}, {"weight": 0.1}], [900, 5000], [900, 100]),
        ([{"weight": 9}, {"weight": 1}], [5000, 20], [180, 20]),
        ([{"rows": 4}, {"rows": 25}], [10, 10], [4, 25]),
        ([{"epochs": 2}, {"epochs": 0.25}, {}], [10, 8, 5], [20, 2, 5]),
        ([{"epochs": 1}, {"rows": 7}], [10, 8], [10, 7]),
    ],
)
def test_what_a_pass_takes(amounts: list[dict[str, Any]], sizes: list[int], taken: list[int]) -> None:
    assert Mix.of(sources(*amounts), sizes).taken == tuple(taken)


@pytest.mark.parametrize(("amount", "said"), [({"epochs": 0.001}, "epochs 0.001"), ({"weight": 1e-6}, "weight 1e-06")])
def test_less_than_a_row_is_refused(amount: dict[str, Any], said: str) -> None:
    others = dict.fromkeys(amount, 1.0)
    with pytest.raises(ConfigError, match=rf"{said} of 0\.jsonl \(100 rows\) is less than one row"):
        Mix.of(sources(amount, others), [100, 100])


def test_a_single_file_is_shuffled_as_ever() -> None:
    order = pass_order(Mix.whole(50), 7, 3)
    assert order.tolist() == np.random.default_rng([7, 3]).permutation(50).tolist()


def test_a_part_of_a_source_is_another_part_in_each_pass_until_all_of_it_was_seen() -> None:
    mix = Mix((100, 30), (25, 30))
    passes = [pass_order(mix, 1, i) for i in range(8)]
    parts = [sorted(order[order < 100].tolist()) for order in passes]
    for four in (parts[:4], parts[4:]):
        assert sorted(row for part in four for row in part) == list(range(100))
    assert parts[0] != parts[4]
    assert all(sorted(order[order >= 100].tolist()) == list(range(100, 130)) for order in passes)


def test_rows_above_what_a_source_has_repeat_as_evenly_as_they_can() -> None:
    order = pass_order(Mix((10,), (25,)), 0, 0)
    counts = np.bincount(order, minlength=10)
    assert sorted(set(counts.tolist())) == [2, 3]


def test_the_order_is_a_function_of_the_seed() -> None:
    mix = Mix((40, 70), (10, 90))
    first = pass_order(mix, 3, 2).tolist()
    pass_order.cache_clear()
    assert pass_order(mix, 3, 2).tolist() == first
    assert pass_order(mix, 4, 2).tolist() != first


def test_rows_seen_of_each_source_are_counted_as_they_will_be() -> None:
    mix = Mix((40, 70), (10, 90))
    order = np.concatenate([pass_order(mix, 0, i) for i in range(3)])[:230]
    assert mix.seen(230, 0) == [int((order < 40).sum()), int((order >= 40).sum())]


@pytest.mark.parametrize(
    ("listed", "said"),
    [
        ([{"path": "a", "weight": 0}, {"path": "b", "weight": 1}], "train_file[0][weight]: input should be greater"),
        ([{"path": "a", "weight": -1}, {"path": "b", "weight": 1}], "train_file[0][weight]: input should be greater"),
        ([{"path": "a", "weight": float("nan")}, "b"], "train_file[0][weight]: input should be a finite number"),
        ([{"path": "a", "weight": float("inf")}, "b"], "train_file[0][weight]: input should be a finite number"),
        ([{"path": "a", "weight": True}, "b"], "weight is true or false, and a number is needed"),
        ([{"path": "a", "rows": 0}], "train_file[0][rows]: input should be greater than 0"),
        ([{"path": "a", "rows": 1.5}], "train_file[0][rows]: a whole number is needed"),
        ([{"path": "a", "epochs": -2}], "train_file[0][epochs]: input should be greater than 0"),
        ([{"path": "a", "rows": 5, "weight": 1}], "a: weight and rows are both given"),
        ([{"path": "a", "weight": 1}, "b"], "weights and counts are mixed: a has a weight and b has none"),
        ([{"path": "a", "weight": 1}, {"path": "b", "rows": 3}], "weights and counts are mixed"),
        ([{"path": "a", "name": "x"}, {"path": "b", "name": "x"}], "two sources are called 'x'"),
        ([{"path": "a", "wieght": 1}], "train_file[0][wieght]: unknown key. Did you mean 'weight'?"),
        ([{"weight": 1}], "train_file[0][path]: this key is required and missing"),
        ([5], "train_file[0]: a mapping (key: value) is needed, got 5"),
        ([], "train_file: the list is empty: name one source at least"),
        ([{"path": "a", "columns": {"prompt": ["x", "y"]}}], "prompt takes one column"),
        (7, "train_file: text is needed, got 7"),
        ("", "train_file: "),
    ],
)
def test_what_no_mixture_can_be_is_refused(listed: Any, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_sft_settings(None, {"base_model": "demo", "train_file": listed})
    assert said in str(caught.value), str(caught.value)
    assert "None" not in str(caught.value)


def test_the_same_file_twice_is_refused_however_it_is_named(tmp_path: Path) -> None:
    for name in ("a-0.jsonl", "a-1.jsonl"):
        (tmp_path / name).write_text("{}\n")
    for one, other in (("a-0.jsonl", "a-0.jsonl"), ("a-0.jsonl", "../{}/a-0.jsonl"), ("a-1.jsonl", "a-*.jsonl")):
        both = (Source(path=one), Source(path=other.replace("{}", tmp_path.name)))
        with pytest.raises(ConfigError, match=r"a-[01]\.jsonl is in two sources"):
            resolved(both, lambda name: (tmp_path / name).resolve(), where="train_file")


def test_names_are_those_of_the_files_and_differ(tmp_path: Path) -> None:
    for name in ("x/train.jsonl", "y/train.jsonl", "z.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}\n")
    listed = (Source(path="x/train.jsonl"), Source(path="y/train.jsonl"), Source(path="z.jsonl", name="rest"))
    named = resolved(listed, lambda name: tmp_path / name, where="train_file")
    assert [source.name for source in named] == ["x/train", "y/train", "rest"]
    with pytest.raises(ConfigError, match="two sources are called 'y/train'"):
        resolved((*listed[:2], Source(path="z.jsonl", name="y/train")), lambda n: tmp_path / n, where="train_file")


def test_held_out_rows_that_are_trained_are_refused_also_as_a_copy(tmp_path: Path) -> None:
    for name, text in (("a.jsonl", "{}\n"), ("b.jsonl", "[]\n"), ("copy.jsonl", "{}\n")):
        (tmp_path / name).write_text(text)
    trained = (Source(path=str(tmp_path / "b.jsonl")), Source(path=str(tmp_path / "a.jsonl")))
    for held_out in ("a.jsonl", "copy.jsonl", "[ac]*.jsonl"):
        with pytest.raises(ConfigError, match=r"a\.jsonl is trained"):
            require_apart(trained, tmp_path / held_out, where="val_file")
    require_apart(trained[:1], tmp_path / "copy.jsonl", where="val_file")


@pytest.mark.parametrize("load", [load_dpo_settings, load_rl_settings])
@pytest.mark.parametrize("target", ["train_on", "row_weight"])
def test_columns_of_a_source_choose_no_turns_where_nothing_trains_them(load: Any, target: str) -> None:
    source = {"path": "demo:sft_train", "columns": {"prompt": "a", target: "last"}}
    with pytest.raises(ConfigError, match=f"{target} is for SFT"):
        load(None, {"base_model": "demo", "train_file": [source]})
