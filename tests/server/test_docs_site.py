"""The pages of the site that are made from the code."""

import re

from docs_pages import RULES, pages

from sota_ml_researcher.doctrine.rules import load_rules
from sota_ml_researcher.jobs.kinds import KINDS
from sota_ml_researcher.server.config_reference import keys_of
from sota_ml_researcher.tools import TOOLS

PAGES = pages()


def test_every_tool_and_its_arguments_are_on_the_page() -> None:
    page = PAGES["reference/tools.md"]
    assert re.findall(r"^## (\w+)$", page, flags=re.M) == [spec.function.__name__ for spec in TOOLS]
    assert "| `train_file` | string, required |" in page


def test_every_key_stands_with_its_default_and_a_link_to_its_rule() -> None:
    sections = re.split(r"^## ", PAGES["reference/configs.md"], flags=re.M)[1:]
    assert [section.split("\n")[0] for section in sections] == list(KINDS)
    for kind, section in zip(KINDS, sections, strict=True):
        assert {key.name for key in keys_of(kind)} <= set(re.findall(r"^\| `([^`]+)`", section, flags=re.M))
    assert "| `32` ([`lora.rank.default`](rules.md#lora.rank.default)) |" in sections[0]


def test_every_rule_has_an_anchor_and_the_doctrine_links_to_it() -> None:
    anchors = re.findall(r'<a id="([\w.]+)"></a>', PAGES[RULES])
    assert anchors == list(load_rules())
    links = {place: re.findall(rf"\]\(\.\./{RULES}#([\w.]+)\)", text) for place, text in PAGES.items()}
    assert {rule for found in links.values() for rule in found} <= set(anchors)
    assert links["doctrine/lora.md"]


def test_messages_are_those_of_the_code() -> None:
    page = PAGES["reference/messages.md"]
    assert "| the file is empty |" in page
    assert "| there is no demo data set '{name}' | There are: {there} | ModelError |" in page
    assert "{_" not in page


def test_links_of_the_readme_lead_to_pages_of_the_site() -> None:
    for link in re.findall(r"\]\(([^)#:]+)\)", PAGES["index.md"]):
        assert not link.startswith("docs/"), link
