import pickle

from sota_ml_researcher.core.errors import DataError, ResearcherError, did_you_mean


def test_an_error_reads_as_place_problem_and_way_out() -> None:
    error = DataError("not JSON", where="train.jsonl:17", fix="Remove the line")
    assert str(error) == "train.jsonl:17: not JSON. Remove the line."
    assert str(ResearcherError("unknown key", fix="Did you mean 'a'?")) == "unknown key. Did you mean 'a'?"


def test_an_error_survives_a_trip_between_processes() -> None:
    error = DataError("not JSON", where="train.jsonl:17", fix="Remove the line")
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy)) == (DataError, str(error))


def test_only_near_misses_are_suggested() -> None:
    assert did_you_mean("lerning_rate", ["learning_rate", "lora_rank"]) == "Did you mean 'learning_rate'?"
    assert did_you_mean("zebra", ["learning_rate", "lora_rank"]) == ""
