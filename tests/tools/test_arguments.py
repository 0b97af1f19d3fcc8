"""Every tool names an argument it does not have, at every depth, and does nothing then."""

from typing import Any

import pytest
from tool_calls import call, with_client

from sota_ml_researcher.jobs.registry import Registry
from sota_ml_researcher.tools import TOOLS

NAMES = [spec.function.__name__ for spec in TOOLS]
SFT = {"base_model": "demo", "train_file": "demo:sft_train"}


@pytest.mark.parametrize("tool", NAMES)
def test_an_unknown_argument_is_refused_by_name(tool: str) -> None:
    failed, text, _ = call(tool, dry_runn=True)
    assert failed
    assert "there is no argument 'dry_runn'. Known keys: " in text


@pytest.mark.parametrize("tool", NAMES)
def test_the_schema_says_that_nothing_else_is_taken(tool: str) -> None:
    tools = with_client(lambda client: client.list_tools()).tools
    schema = next(one.input_schema for one in tools if one.name == tool)
    for definition in [schema, *schema.get("$defs", {}).values()]:
        assert definition["additionalProperties"] is False


@pytest.mark.parametrize(
    ("tool", "arguments", "message"),
    [
        ("start_sft", {"overrides": SFT, "dry_run": True}, "there is no argument 'dry_run'"),
        ("start_sft", {"overrides": SFT, "validate": True}, "'validate'. Did you mean 'validate_only'?"),
        ("check_dataset", {"train_file": "demo:sft_train", "max_length": 16}, "there is no argument 'max_length'"),
        ("run_benchmark", {"model": "demo"}, "there is no argument 'model'"),
        ("sample_model", {"model": "demo", "messages": [{"role": "user", "content": "x", "name": "y"}]}, "[name]: unk"),
        ("sample_model", {"model": "demo", "messages": [{"role": "robot", "content": "x"}]}, "messages[0][role]"),
        ("submit_verdicts", {"job_id": "x", "verdicts": [{"id": "1", "verdcit": "A"}]}, "Did you mean 'verdict'?"),
        ("submit_verdicts", {"job_id": "x", "verdicts": [{"verdict": "A"}]}, "verdicts[0][id] is required and missing"),
        ("list_jobs", {"limit": "many"}, "limit: a whole number is needed, got 'many'"),
        ("list_jobs", {"limit": [1] * 9}, "limit: a whole number is needed, got a list of 9"),
        ("start_sft", {"config": "a\0b"}, "holds a NUL character: 'a\\x00b'"),
        ("start_sft", {"config": "~nobody-of-this-name/x.yaml"}, "~nobody-of-this-name/x.yaml"),
        ("start_sft", {"config": "x" * 5000}, "config: a path of 5,000 characters is longer than any file's"),
        ("sample_model", {"model": "\udce4", "prompts": ["x"]}, "half of a surrogate pair"),
    ],
)
def test_what_is_wrong_is_named_and_nothing_starts(tool: str, arguments: dict[str, Any], message: str) -> None:
    failed, text, _ = call(tool, **arguments)
    assert failed
    assert message in text
    assert "unexpected" not in text
    assert Registry().find() == []
