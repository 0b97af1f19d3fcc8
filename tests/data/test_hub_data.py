"""Data sets of the hub, against one on loopback: what is fetched, pinned, resumed, refused."""

import errno
import gzip
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml
from hub_fixture import CHATS
from huggingface_hub import constants, file_download
from loopback_hub import TOKEN, Hub, HubRepository, json_lines, parquet

from sota_ml_researcher.core.errors import ConfigError, DataError, ResearcherError, StorageError
from sota_ml_researcher.data import hub_fetch
from sota_ml_researcher.data.hub_layout import layout_of
from sota_ml_researcher.data.hub_reference import HubReference, parse_reference
from sota_ml_researcher.data.row_files import read_rows
from sota_ml_researcher.data.shards import facts_of
from sota_ml_researcher.data.sources import PATIENCE_S, DataSource, data_source
from sota_ml_researcher.models.hub import cache_if_offline

ROWS, LINES = CHATS, json_lines(CHATS)


def get(name: str) -> DataSource:
    return data_source(name, where="train_file")


def rows_of(source: DataSource) -> list[Any]:
    return [row.content() for row in read_rows(source.path)]


def refusal(name: str) -> str:
    with pytest.raises(ResearcherError) as caught:
        get(name)
    assert "None" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("written", "reference"),
    [
        ("a/b@main", HubReference("a/b")),
        ("a/b:c/train@v1.0", HubReference("a/b", "c", "train", revision="v1.0")),
        ("a/b/train[:1000]@main", HubReference("a/b", None, "train", 1000)),
        ("a/b:c@refs/convert/parquet", HubReference("a/b", "c", revision="refs/convert/parquet")),
        ("a/b/data/x.jsonl@main", HubReference("a/b", None, "data/x.jsonl")),
    ],
)
def test_a_reference_is_read_and_written(written: str, reference: HubReference) -> None:
    assert parse_reference(written, where="train_file") == reference
    assert str(reference) == written


@pytest.mark.parametrize("path", ["a/b", "train.jsonl", "/a/b@main", "./a/b@main", "data/train@2/x.jsonl", "a@main"])
def test_what_has_no_revision_is_a_path(path: str) -> None:
    assert parse_reference(path, where="train_file") is None


def test_a_part_that_is_not_the_first_rows_is_refused() -> None:
    with pytest.raises(ConfigError, match=re.escape("Write [:1000]")):
        parse_reference("a/b/train[10:20]@main", where="train_file")


@pytest.mark.parametrize(
    ("files", "card", "layout"),
    [
        (["train.jsonl", "dev.jsonl"], {}, {"default": {"train": ["train.jsonl"], "validation": ["dev.jsonl"]}}),
        (["a.csv", "b.csv", "README.md", ".x.csv"], {}, {"default": {"train": ["a.csv", "b.csv"]}}),
        (
            ["data/test-00000-of-00001-0f.parquet", "data/train-00000-of-00001.parquet"],
            {},
            {
                "default": {
                    "train": ["data/train-00000-of-00001.parquet"],
                    "test": ["data/test-00000-of-00001-0f.parquet"],
                }
            },
        ),
        (["en/train/0000.parquet", "de/train/0000.parquet"], {}, {
            "de": {"train": ["de/train/0000.parquet"]}, "en": {"train": ["en/train/0000.parquet"]}}),
        (["x/train.csv", "x/test.csv"], {"configs": [{"config_name": "c", "data_dir": "x"}]}, {
            "c": {"train": ["x/train.csv"], "test": ["x/test.csv"]}}),
        (["a.jsonl", "b.jsonl"], {"configs": [{"config_name": "c", "data_files": "b.jsonl"}]}, {
            "c": {"train": ["b.jsonl"]}}),
        (["a.jsonl"], {"configs": "nonsense"}, {"default": {"train": ["a.jsonl"]}}),
        (["a.jsonl"], {"configs": [{"config_name": 3, "data_files": {"split": "s", "path": "**/**/**/**/**"}}]}, {}),
        (["model.safetensors"], {}, {}),
    ],
)  # fmt: skip
def test_configurations_and_splits_follow_the_card_or_the_names(
    files: list[str], card: dict[str, Any], layout: dict[str, Any]
) -> None:
    assert layout_of(files, card) == layout


CARD = """---
configs:
- config_name: one
  data_files:
  - {split: train, path: one/train-*}
  - {split: test, path: [one/extra.jsonl, "one/t*.jsonl"]}
- config_name: two
  data_dir: two
- config_name: three
  data_files: "**/b.jsonl"
---
"""


@pytest.mark.parametrize(
    ("files", "card"),
    [
        (["train.jsonl", "dev.jsonl", "other.jsonl"], ""),
        (["a.jsonl", "sub/b.jsonl", ".hidden/c.jsonl", "__x/d.jsonl"], ""),
        (["data/train-00000-of-00002.jsonl", "data/train-00001-of-00002.jsonl", "data/x.y-00000-of-00001.jsonl"], ""),
        (["train/a.jsonl", "test/a.jsonl", "validation_1/b.jsonl"], ""),
        (["my-training-set.jsonl", "my_test_set.jsonl", "contest.jsonl"], ""),
        (["one/train-1.jsonl", "one/extra.jsonl", "one/t2.jsonl", "two/test.jsonl", "two/b.jsonl", "x/b.jsonl"], CARD),
    ],
)  # fmt: skip
def test_the_layout_is_the_one_that_datasets_sees(tmp_path: Path, files: list[str], card: str) -> None:
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes(LINES[:400])
    (tmp_path / "README.md").write_text(card)
    layout = layout_of(files, yaml.safe_load(card.strip("-\n")) or {})
    assert layout
    for config, splits in layout.items():
        theirs = datasets.load_dataset_builder(str(tmp_path), config).config.data_files
        seen = {str(s): sorted(str(Path(f).relative_to(tmp_path)) for f in theirs[s]) for s in theirs}
        assert {split: sorted(found) for split, found in splits.items()} == seen


def test_a_split_is_fetched_once_and_pinned(hub: Hub) -> None:
    source = get("openai/gsm8k:main/train@main")
    commit = hub.repositories["openai/gsm8k"].branches["main"]
    assert source.reference == f"openai/gsm8k:main/train@{commit}"
    assert len(rows_of(source)) == 40
    facts = facts_of(source.path)
    assert facts["hub"]["commit"] == commit
    assert facts["hub"]["reference"] == source.reference
    assert len(facts["files"]) == 1
    before = list(hub.requests)
    assert get(source.reference).path == source.path
    assert hub.requests == before


def test_a_branch_that_moves_is_another_commit(hub: Hub) -> None:
    first = get("some/chats@main")
    hub.repositories["some/chats"].push({"train.jsonl": json_lines(ROWS[:3])})
    second = get("some/chats@main")
    assert [len(rows_of(each)) for each in (first, second)] == [400, 3]
    assert get(str(first.reference)).path == first.path


def test_a_path_that_exists_wins_and_a_misspelt_one_asks_nobody(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "some" / "chats@main"
    file.parent.mkdir()
    file.write_bytes(LINES)
    assert get("some/chats@main").path == file
    assert "some/chatts@main" in refusal("some/chatts")
    assert hub.requests == []


def test_a_missing_data_set_is_read_both_ways_with_near_names(hub: Hub, tmp_path: Path) -> None:
    text = refusal("openai/gsm8@main")
    assert "Did you mean 'openai/gsm8k'?" in text
    assert f"no such file here ({Path.cwd() / 'openai/gsm8@main'})" in text
    assert "has no revision 'v9'" in refusal("some/chats@v9")


def test_several_splits_are_listed_as_they_are_to_be_written(hub: Hub) -> None:
    text = refusal("openai/gsm8k@main")
    assert "has 4 configurations and splits, and one is needed" in text
    listed = re.findall(r"openai/gsm8k:\S+?@main(?=[;⟫])", text)
    assert len(listed) == 4
    assert all(rows_of(get(each)) for each in listed)
    assert "Did you mean 'train'?" in refusal("openai/gsm8k:main/trian@main")
    assert "There are: main, socratic" in refusal("openai/gsm8k:x/train@main")


def test_a_cut_connection_is_resumed(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    hub.cut_after, hub.cuts = 30_000, 2
    assert len(rows_of(get("some/chats@main"))) == 400
    assert hub.ranges == ["bytes=30000-", "bytes=60000-"]
    assert hub.sent["train.jsonl"] == len(LINES)


@pytest.mark.parametrize("error", [OSError("Consistency check failed"), RuntimeError("Data processing error")])
def test_a_transfer_that_breaks_off_is_a_sentence(hub: Hub, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def broken(*args: Any, **named: Any) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(file_download, "http_get", broken)
        assert "the connection was cut while train.jsonl was fetched; nothing of it is kept" in refusal(
            "some/chats@main"
        )
    assert len(rows_of(get("some/chats@main"))) == 400


def test_what_is_not_what_the_hub_states_is_not_kept(hub: Hub) -> None:
    hub.wrong_bytes = True
    assert "its SHA-256 differs" in refusal("some/chats@main")
    hub.wrong_bytes = False
    assert len(rows_of(get("some/chats@main"))) == 400


def test_a_limit_of_requests_is_said_with_its_seconds_or_waited_for(hub: Hub) -> None:
    hub.limited, hub.retry_after = 1, "37"
    assert "Try again in 37 seconds" in refusal("some/chats@main")
    get("openai/gsm8k:main/test@main")
    hub.retry_after = "0"
    get("some/chats/train[:1]@main")
    hub.limited = 2  # of the file's own two requests
    commit = hub.repositories["some/chats"].branches["main"]
    assert len(rows_of(get(f"some/chats/train@{commit}"))) == 400


def test_an_error_of_the_hub_is_a_sentence(hub: Hub) -> None:
    get("openai/gsm8k:main/test@main")
    hub.status = 503
    assert "the hub answered 503" in refusal("some/chats@main")
    hub.status = 200
    assert "does not answer as a hub does" in refusal("some/chats@main")


def test_a_damaged_parquet_file_is_named(hub: Hub) -> None:
    hub.repositories["some/cut"] = HubRepository({"train.parquet": parquet(ROWS)[:-9]})
    assert "not a readable Parquet file" in refusal("some/cut[:3]@main")
    with pytest.raises(DataError, match="not a readable Parquet file"):
        rows_of(get("some/cut@main"))


def test_names_that_say_more_than_a_name_cannot_be_asked_for(hub: Hub) -> None:
    config = {"config_name": "do as\nI say", "data_files": [{"split": "x\nseed: 7", "path": "*"}]}
    hub.repositories["some/evil"] = HubRepository({"do as I say.jsonl": LINES}, {"configs": [config]})
    assert "no files that are read here" in refusal("some/evil@main")
    source = get("some/evil/do as I say.jsonl@main")
    assert [file.name for file in source.path.glob("[!.]*")] == ["do-as-I-say.jsonl"]


def test_a_gated_set_says_where_to_ask_and_shows_no_token(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repositories["some/chats"].gated = True
    page = f"{constants.ENDPOINT}/datasets/some/chats"
    assert f"Ask for it on {page}: and set HF_TOKEN" in refusal("some/chats@main")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.granted = False
    text = refusal("some/chats@main")
    assert "the account of your token has to be granted it" in text
    assert TOKEN not in text
    hub.granted = True
    assert len(rows_of(get("some/chats@main"))) == 400
    assert hub.tokens == {None, f"Bearer {TOKEN}"}
    monkeypatch.setenv("HF_TOKEN", "hf_anothertoken000000000")
    assert "the hub refuses the token. Check HF_TOKEN" in refusal("some/chats@v2")


def test_a_private_set_is_there_for_its_token(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repositories["some/chats"].private = True
    assert "a private one needs HF_TOKEN" in refusal("some/chats@main")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert get("some/chats@main").reference


def test_offline_the_commit_at_hand_is_used_with_a_note(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = get("some/chats@main")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    again = get("some/chats@main")
    assert again.path == fetched.path
    assert "HF_HUB_OFFLINE is set: main is the commit that it was when last asked" in again.facts
    assert "HF_HUB_OFFLINE is set" in refusal("openai/gsm8k:main/train@main")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "is out of reach" in get("some/chats@main").facts
    text = refusal("openai/gsm8k:main/train@main")
    assert "the hub at http://127.0.0.1:9 is out of reach. Go online, or set HF_ENDPOINT" in text


def test_a_program_of_a_data_set_is_never_run(hub: Hub, tmp_path: Path) -> None:
    script = f"open({str(tmp_path / 'ran')!r}, 'w')".encode()
    hub.repositories["some/scripted"] = made = HubRepository({"scripted.py": script, "raw.jsonl": LINES})
    text = refusal("some/scripted@main")
    assert "no data set's program is run here" in text
    assert "some/scripted@refs/convert/parquet" in text
    assert not (tmp_path / "ran").exists()
    made.push({"c/train/0000.parquet": parquet(ROWS)}, "refs/convert/parquet")
    assert len(rows_of(get("some/scripted@refs/convert/parquet"))) == 400


def test_what_cannot_be_read_is_refused(hub: Hub) -> None:
    hub.repositories["some/pictures"] = HubRepository({"train/1.png": b"x"})
    assert "no files that are read here" in refusal("some/pictures@main")


def test_a_large_set_is_fetched_in_part_only(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_fetch, "MOST_BYTES", 10_000)
    text = refusal("some/chats@main")
    assert "no more than 10 kB are fetched whole" in text
    assert "some/chats/train[:100000]@main" in text
    assert hub.sent == {}
    assert rows_of(get("some/chats/train[:7]@main")) == ROWS[:7]


TEXT = [{"q": 'with, "quotes"\nand lines', "a": str(n)} for n in range(30)]
CSV = "q;a\n" + "".join(f'"{row["q"].replace(chr(34), chr(34) * 2)}";{row["a"]}\n' for row in TEXT)
NESTED = [{"turns": [{"role": "user", "content": f"{n}"}] * (n % 3 + 1)} for n in range(50)]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train.jsonl", json_lines(TEXT)),
        ("train.jsonl.gz", gzip.compress(json_lines(TEXT))),
        ("train.csv", CSV.encode()),
        ("train.parquet", parquet(NESTED)),
    ],
)
@pytest.mark.parametrize("count", [1, 9, 1000])
def test_the_first_rows_are_those_of_the_whole_file(hub: Hub, name: str, content: bytes, count: int) -> None:
    hub.repositories["some/part"] = HubRepository({name: content, name.replace("train", "train-2"): content})
    whole = rows_of(get("some/part@main"))
    assert rows_of(get(f"some/part[:{count}]@main")) == whole[:count]
    assert len(whole) in (60, 100)


def test_the_first_rows_of_a_long_file_leave_the_rest_where_it_is(hub: Hub) -> None:
    hub.repositories["some/long"] = HubRepository({"train.jsonl": LINES * 40})
    assert len(rows_of(get("some/long[:5]@main"))) == 5
    assert hub.sent["train.jsonl"] < len(LINES * 40) / 2


def test_of_a_json_array_no_part_is_fetched(hub: Hub) -> None:
    hub.repositories["some/array"] = HubRepository({"train.json": json.dumps(ROWS).encode()})
    assert "of .json files no part can be fetched" in refusal("some/array[:5]@main")
    assert rows_of(get("some/array@main")) == ROWS


def test_json_lines_that_are_called_json_are_read(hub: Hub) -> None:
    hub.repositories["some/lines"] = HubRepository({"train.json": LINES})
    assert rows_of(get("some/lines@main")) == ROWS


def test_one_file_can_be_named(hub: Hub) -> None:
    hub.repositories["some/both"] = HubRepository({"a/train.jsonl": LINES, "b/train.csv": CSV.encode()})
    assert len(rows_of(get("some/both/a/train.jsonl@main"))) == 400
    text = refusal("some/both@main")
    assert "its files are of several kinds (.csv, .jsonl). Name one file, such as some/both/b/train.csv@main" in text


def test_a_file_that_left_the_hubs_cache_is_fetched_again(hub: Hub, tmp_path: Path) -> None:
    source = get("some/chats@main")
    shutil.rmtree(tmp_path / "hf")
    with pytest.raises(DataError, match=re.escape(f"check_dataset of {source.reference} fetches it again")):
        rows_of(source)
    assert get("some/chats@main").path == source.path
    assert len(rows_of(source)) == 400


def left_behind(tmp_path: Path, home: Path) -> list[Path]:
    return [*(tmp_path / "hf").rglob("*.incomplete"), *filter(Path.is_dir, home.rglob(".chats*"))]


def test_a_full_disk_is_said_before_or_while_it_happens(
    hub: Hub, tmp_path: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(hub_fetch.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))  # pyright: ignore
        with pytest.raises(StorageError, match="are to be fetched, and 1 kB are free"):
            get("some/chats@main")
    assert hub.sent == {}

    def full(*args: Any, **named: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(file_download, "http_get", full)
        with pytest.raises(StorageError, match="no space left: the disk is full"):
            get("some/chats@main")
    assert left_behind(tmp_path, own_home) == []
    assert len(rows_of(get("some/chats@main"))) == 400


def test_threads_leave_the_setting_of_the_hubs_client_as_it_was(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with cache_if_offline():
        assert constants.HF_HUB_OFFLINE
        inner = cache_if_offline()
        inner.__enter__()
    assert constants.HF_HUB_OFFLINE
    inner.__exit__(None, None, None)
    assert not constants.HF_HUB_OFFLINE


def test_a_caller_without_patience_is_told_and_the_fetch_goes_on(hub: Hub) -> None:
    hub.may_send.clear()
    token = PATIENCE_S.set(0.5)
    try:
        assert "it is still being fetched" in refusal("some/chats@main")
        hub.may_send.set()
        PATIENCE_S.set(60)
        assert len(rows_of(get("some/chats@main"))) == 400
    finally:
        PATIENCE_S.reset(token)
    assert hub.sent["train.jsonl"] == len(LINES)


SCRIPT = """
from sota_ml_researcher.data.sources import data_source
print(data_source("some/chats@main", where="train_file").path)
"""


def test_a_killed_fetch_leaves_nothing_that_is_used(hub: Hub, tmp_path: Path, own_home: Path) -> None:
    hub.may_send.clear()
    environment = os.environ | {"HF_ENDPOINT": constants.ENDPOINT, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    environment["HF_HUB_CACHE"] = constants.HF_HUB_CACHE
    with subprocess.Popen([sys.executable, "-c", SCRIPT], env=environment) as running:
        while not any(request.startswith("GET /datasets/") for request in hub.requests):
            time.sleep(0.05)
        running.kill()
    assert left_behind(tmp_path, own_home)
    hub.may_send.set()
    assert len(rows_of(get("some/chats@main"))) == 400
    assert [path for path in own_home.rglob(".chats*") if path.is_dir()] == []


def test_two_processes_fetch_it_once_by_the_variables_of_the_hub(hub: Hub, tmp_path: Path, own_home: Path) -> None:
    hub.repositories["some/chats"].private = True
    environment = os.environ | {
        "HF_ENDPOINT": constants.ENDPOINT,
        "HF_HOME": str(tmp_path / "home"),
        "HF_TOKEN": TOKEN,
        "HF_HUB_OFFLINE": "0",
    }
    command = [sys.executable, "-c", SCRIPT]
    running = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = {each.communicate()[0].strip() for each in running}
    (path,) = said
    assert Path(path).is_relative_to(own_home)
    assert len(rows_of(DataSource(Path(path)))) == 400
    assert next(Path(path).glob("*.jsonl")).resolve().is_relative_to(tmp_path / "home")
    assert hub.sent["train.jsonl"] == len(LINES)
