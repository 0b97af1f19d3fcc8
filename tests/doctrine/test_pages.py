import re
from datetime import date
from importlib.resources import files

import pytest

from sota_ml_researcher.core.errors import ConfigError
from sota_ml_researcher.doctrine.rules import load_rules, load_sources
from sota_ml_researcher.doctrine.topics import front_matter, read_topic, topics

FOLDER = files("sota_ml_researcher.doctrine")
EXPECTED = {
    "batch_and_precision",
    "capacity",
    "contamination",
    "data",
    "diagnosis",
    "distillation",
    "dpo",
    "hyperparameters",
    "judge_evaluation",
    "kl_penalty",
    "lora",
    "lora_variants",
    "method_choice",
    "mismatch",
    "multi_turn",
    "preference_stages",
    "qlora",
    "reasoning",
    "reasoning_evaluation",
    "research_workflow",
    "reward_hacking",
    "rewards",
    "rl",
    "rl_scaling",
    "sft",
    "statistics",
    "tinker_platform",
}
PAGES = sorted(p.name.removesuffix(".md") for p in FOLDER.iterdir() if p.name.endswith(".md"))
FAMILIES = {rule_id.split(".")[0] for rule_id in load_rules()}
TOOLS = (
    "validate_capacity check_dataset start_sft start_dpo start_grpo start_generation run_judge_eval run_benchmark "
    "list_jobs get_job wait_for_job cancel_job resume_job analyze_run compare_runs sample_model list_models "
    "export_checkpoint"
).split()


def body(name: str) -> str:
    return read_topic(name).split("---\n", 2)[2]


def prose(name: str) -> str:
    """The page without its list of links."""
    return re.sub(r"(?m)^\[\w+\]: .*$", "", body(name))


def code_spans(name: str) -> set[str]:
    return set(re.findall(r"`([^`\n]+)`", body(name)))


def test_every_planned_page_exists() -> None:
    assert set(PAGES) >= EXPECTED


@pytest.mark.parametrize("name", PAGES)
def test_the_front_matter_is_complete(name: str) -> None:
    head = front_matter(read_topic(name))
    assert set(head) == {"title", "description", "when_to_read", "sources", "last_checked"}
    assert 20 < len(head["description"]) < 140 and "\n" not in head["description"]
    assert isinstance(head["last_checked"], date)
    assert head["sources"] and set(head["sources"]) <= set(load_sources())


@pytest.mark.parametrize("name", PAGES)
def test_a_page_has_300_to_900_words_and_a_table(name: str) -> None:
    assert 300 <= len(prose(name).split()) <= 900
    assert re.search(r"(?m)^\|(---\|)+$", body(name))


@pytest.mark.parametrize("name", PAGES)
def test_every_table_row_has_as_many_cells_as_its_head(name: str) -> None:
    for table in re.findall(r"(?m)(?:^\|.*\n)+", body(name)):
        widths = {len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}
        assert len(widths) == 1, table


@pytest.mark.parametrize("name", PAGES)
def test_every_rule_a_page_names_exists(name: str) -> None:
    named = {span for span in code_spans(name) if re.fullmatch(r"[a-z]+(\.[a-z0-9_]+)+", span)}
    named = {span for span in named if span.split(".")[0] in FAMILIES}
    assert named - set(load_rules()) == set()
    assert named


@pytest.mark.parametrize("name", PAGES)
def test_every_tool_a_page_names_is_one_of_ours(name: str) -> None:
    verbs = (
        "validate",
        "check",
        "prepare",
        "start",
        "run",
        "list",
        "get",
        "wait",
        "cancel",
        "resume",
        "analyze",
        "compare",
        "sample",
    )
    named = {span for span in code_spans(name) if re.fullmatch(rf"({'|'.join(verbs)})_[a-z_]+", span)}
    assert named - set(TOOLS) - {"validate_only"} == set()  # an argument


@pytest.mark.parametrize("name", PAGES)
def test_every_link_is_https_and_the_sources_own(name: str) -> None:
    text = body(name)
    assert re.findall(r"https?://\S+", text) == re.findall(r"https://\S+", text)
    cited = set(re.findall(r"\]\[(\w+)\]", text))
    defined = dict(re.findall(r"(?m)^\[(\w+)\]: (\S+)$", text))
    assert cited == set(defined) == set(front_matter(read_topic(name))["sources"])
    assert defined == {key: load_sources()[key].link for key in cited}


@pytest.mark.parametrize("name", PAGES)
def test_no_model_id_or_price_stands_in_prose(name: str) -> None:
    assert not re.search(r"\b(Qwen|meta-llama|moonshotai|deepseek-ai|openai|zai-org|nvidia)/", body(name))
    assert not re.search(r"\$\s?\d|\bUSD\b", body(name))


@pytest.mark.parametrize("name", PAGES)
def test_topics_a_page_refers_to_exist(name: str) -> None:
    referred = set(re.findall(r"topics? `(\w+)`", body(name)))
    assert referred <= set(PAGES) | {"rules"}


def test_topics_are_listed_with_their_true_sizes() -> None:
    listed = topics()
    assert [topic.name for topic in listed] == sorted([*PAGES, "rules"])
    for topic in listed:
        assert topic.size_bytes == len(read_topic(topic.name).encode())
        assert topic.title and topic.description and topic.when_to_read
        # A resource is read whole: pages fit in 2,000 tokens or so, the table of all rules in 72 KiB.
        assert topic.size_bytes < (72 * 1024 if topic.name == "rules" else 8 * 1024)


def test_the_table_of_rules_has_them_all_and_their_sources() -> None:
    table = read_topic("rules")
    rows = [line for line in table.splitlines() if line.startswith("| `")]
    assert [row.split("`")[1] for row in rows] == list(load_rules())
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 7 for row in rows)
    for each in load_rules().values():
        assert all(source.link in table for source in each.sources)


def test_one_rule_can_be_read_alone_by_its_id() -> None:
    page = read_topic("lora.lr.over_full")
    assert "- value: 10 times full fine-tuning's rate" in page
    assert "disputed" in page and "https://thinkingmachines.ai/blog/lora/" in page
    assert len(page) < 2_000


def test_an_unknown_topic_names_the_near_one_and_all() -> None:
    with pytest.raises(
        ConfigError, match=r"no topic 'statistic'.*Did you mean 'statistics'.*Topics: batch_and_precision"
    ):
        read_topic("statistic")
    with pytest.raises(ConfigError, match="no topic"):
        read_topic("../rules.py")


def test_a_page_without_front_matter_is_an_error() -> None:
    with pytest.raises(ConfigError, match="no front matter"):
        front_matter("# Title\n")
