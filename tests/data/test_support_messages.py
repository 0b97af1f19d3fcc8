"""The packaged support messages are what their script makes, and held-out kinds are apart."""

import itertools
import json
from pathlib import Path

import jsonschema
import pytest
import support_messages as support

from sota_ml_researcher.core.paths import demo_data

SETS = support.all_sets()


@pytest.mark.parametrize("name", SETS)
def test_the_packaged_file_is_what_the_script_makes(name: str) -> None:
    lines = demo_data(name, where="test").read_text().splitlines()
    assert [json.loads(line) for line in lines] == SETS[name]


def test_every_answer_fits_the_packaged_schema_and_says_what_the_message_says() -> None:
    schema = json.loads(demo_data("support_schema", where="test", suffix=".json").read_text())
    for rows in SETS.values():
        for row in rows:
            said = json.loads(row.get("completion") or row["answer"])
            jsonschema.validate(said, schema)
            assert said["product"] in row["prompt"]
            assert all(said[key] is None or said[key] in row["prompt"] for key in ("order", "city"))


def test_no_message_is_in_two_sets_and_held_out_messages_are_of_other_kinds() -> None:
    messages = [row["prompt"] for rows in SETS.values() for row in rows]
    assert len(messages) == len(set(messages)) and len(SETS["support_train"]) >= 2000
    for one, other in itertools.combinations((support.TRAIN, support.REWARDED, support.HELD_OUT), 2):
        assert not set(one.words) & set(other.words)
        assert not set(one.things) & set(other.things)
        assert not set(one.cities) & set(other.cities)
        for intent in support.INTENTS:
            assert not set(one.requests[intent]) & set(other.requests[intent])


def test_a_message_follows_from_its_seed() -> None:
    assert support.examples(5, 20, support.TRAIN) == support.examples(5, 20, support.TRAIN)
    assert support.examples(5, 20, support.TRAIN) != support.examples(6, 20, support.TRAIN)


def test_the_folder_holds_no_other_set() -> None:
    here = {path.stem for path in Path(support.FOLDER).glob("support_*.jsonl")}
    assert here == set(SETS)
