import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from mcp_types import Tool
from score_routing import HALVES, PACKAGE, Embedding, routes, scored, sentences_of

from sota_ml_researcher.tools import TOOLS

BY_HALF: dict[str, list[dict[str, Any]]] = yaml.safe_load((Path(__file__).parent / "requests.yaml").read_text())
REQUESTS = [each for half in BY_HALF.values() for each in half]
DESCRIPTIONS = {spec.function.__name__: spec.function.__doc__ or "" for spec in TOOLS}
WHEN = re.compile(r"\bUse (it|this|for|when)\b")
WHEN_NOT = re.compile(r"\b(Not for|instead|trains nothing|says nothing|only (if|while)|[Ff]or .{5,60} use \w+_\w+)\b")
# Of the 60, below what the embedding reached when the page was written: words that leave a description pull it down.
LEAST_FIRST = 35
needs_embedding = pytest.mark.skipif(
    importlib.util.find_spec(PACKAGE) is None, reason=f"{PACKAGE} is not installed (extra dev)"
)


def test_there_are_sixty_requests_in_two_halves_each_with_its_reason() -> None:
    assert {half: len(rows) for half, rows in BY_HALF.items()} == dict.fromkeys(HALVES, 30)
    assert len({each["request"] for each in REQUESTS}) == 60
    for each in REQUESTS:
        assert set(each) == {"request", "tool", "not", "why"}
        assert len(each["why"]) > 30
        assert each["tool"] != each["not"]


def test_every_tool_is_somebodys_first() -> None:
    assert {each["tool"] for each in REQUESTS} >= set(DESCRIPTIONS)


def test_a_request_does_not_give_its_tool_away() -> None:
    for each in REQUESTS:
        assert each["tool"] not in each["request"]


@pytest.mark.parametrize("each", REQUESTS, ids=lambda each: each["request"][:40])
def test_both_tools_exist_and_a_description_tells_them_apart(each: dict[str, Any]) -> None:
    pair = {each["tool"], each["not"]}
    assert pair <= set(DESCRIPTIONS)
    first, second = sorted(pair)
    assert second in DESCRIPTIONS[first] or first in DESCRIPTIONS[second], f"{first} and {second}: say which when"


@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_a_description_says_when_and_when_not(name: str) -> None:
    opening, *rest = DESCRIPTIONS[name].strip().split("\n\n")
    assert len(" ".join(opening.split())) <= 140, "the first sentence is what a list of tools shows"
    assert rest
    text = " ".join(DESCRIPTIONS[name].split())
    assert WHEN.search(text), "say when: 'Use it ...'"
    assert WHEN_NOT.search(text), "say when not: 'Not for ...', '... use other_tool instead'"


def test_a_tool_is_compared_by_sentence_and_by_parameter() -> None:
    schema = {"type": "object", "properties": {"job_id": {"description": "Such as sft-1"}, "limit": {"default": 3}}}
    tool = Tool(
        name="get_job", title="Show a job", description="Show one.\n\nUse it now. Not\nlater.", input_schema=schema
    )
    assert sentences_of(tool) == [
        "get job: Show a job",
        "Show one.",
        "Use it now.",
        "Not later.",
        "job id: Such as sft-1",
    ]


def test_what_users_say_counts_for_the_tool_that_the_skill_names_first() -> None:
    said = routes(["cancel_job", "resume_job", "start_sft", "check_dataset"])
    assert (said["cancel_job"], said["resume_job"]) == (["stop it"], ["go on with it"])
    assert "fine-tune on these chats" in said["check_dataset"]
    assert "fine-tune on these chats" not in said["start_sft"]


@needs_embedding
def test_a_word_that_few_sentences_have_weighs_more() -> None:
    both, common, rare = Embedding(["train a model", "train it", "train", "benchmark"]).of(
        ["train benchmark", "train", "benchmark"]
    )
    assert both @ rare > both @ common
    both, common, rare = Embedding(["benchmark it", "a benchmark", "train"]).of(
        ["train benchmark", "benchmark", "train"]
    )
    assert both @ rare > both @ common


@needs_embedding
def test_an_embedding_of_the_descriptions_finds_as_many_tools_as_the_page_says_or_more() -> None:
    halves = scored()
    assert sum(row.right for rows in halves.values() for row in rows) >= LEAST_FIRST
