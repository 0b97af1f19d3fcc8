"""Every claim in a table with a source column has one, or says that it has none."""

import re
from collections.abc import Iterator
from importlib.resources import files

import pytest

from sota_ml_researcher.doctrine.topics import read_topic

FOLDER = files("sota_ml_researcher.doctrine")
PAGES = sorted(p.name.removesuffix(".md") for p in FOLDER.iterdir() if p.name.endswith(".md"))
# A link; another place of the page's own source; another page; or an honest word that nobody published it.
CITED = re.compile(r"\]\[\w+\]|^the same\b|^Section \d|^topic `\w+`$")
OWN = re.compile(r"^(our (practice|choice|experience)|practice|algebra|arithmetic|classical|computed)$")


def sourced_rows(name: str) -> Iterator[tuple[str, str]]:
    """Each row of a table with a source column, and its source."""
    head: list[str] = []
    for line in read_topic(name).splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if not cells:
            head = []
        elif not head:
            head = cells
        elif "source" in head and not set(line) <= set("|-"):
            yield line, cells[head.index("source")]


@pytest.mark.parametrize("name", PAGES)
def test_every_claim_is_cited_or_called_our_own(name: str) -> None:
    bare = [
        line
        for line, source in sourced_rows(name)
        if not CITED.search(source) and not OWN.search(source) and not (source == "" and "see the topic `" in line)
    ]
    assert bare == []


def test_most_claims_have_a_published_source() -> None:
    rows = [source for name in PAGES for _, source in sourced_rows(name)]
    own = [source for source in rows if OWN.search(source)]
    assert len(rows) > 80
    assert len(own) < 0.2 * len(rows)
