"""Which tool comes first for a typical request, by a static embedding of the tools' texts as a client gets them.

    python scripts/score_routing.py                 the score of both halves, and each request that went elsewhere
    python scripts/score_routing.py --page docs/routing.md    writes the table into the page

A tool's texts are its name with its title, each sentence of its description, each parameter, and what users say where
the plugin's skill names the tool first (references/tools.md). Every one of them is a vector: the mean of its tokens'
vectors (the package ``wordllama``: 32,000 of 256 numbers, 16 MB), a token that few of the sentences have weighing more
(inverse document frequency; compare Arora, Liang and Ma 2017, "A simple but tough-to-beat baseline for sentence
embeddings"). A tool's score is the soft maximum over its sentences, less the tool's mean over the first half, since a
long text is near to everything. It knows words and no grammar: it sees neither "not for" nor that an id is missing. It
shows where two texts are alike, and is no measure of an assistant.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import yaml
from mcp import Client
from numpy.typing import NDArray

from sota_ml_researcher.server.app import build_server

ROOT = Path(__file__).resolve().parent.parent
ROUTES = ROOT / "skills" / "researcher" / "references" / "tools.md"
REQUESTS = ROOT / "tests" / "routing" / "requests.yaml"
HALVES = ("improved_on", "held_out")
PACKAGE = "wordllama"
# The soft maximum over a tool's sentences: near 0 the nearest alone counts, at 1 all of them alike.
SOFTNESS = 0.1
_MARKS = ("<!-- routing -->\n", "<!-- /routing -->")


@dataclass(frozen=True)
class Routed:
    """A request, the tool that should come first, and the tools by score."""

    request: str
    wanted: str
    ranked: tuple[str, ...]

    @property
    def right(self) -> bool:
        """Whether the wanted tool comes first."""
        return self.ranked[0] == self.wanted


class Embedding:
    """Texts as unit vectors: their tokens' vectors, weighted by how few of ``sentences`` have the token."""

    def __init__(self, sentences: Sequence[str]) -> None:
        from safetensors.numpy import load_file
        from tokenizers import Tokenizer

        spec = importlib.util.find_spec(PACKAGE)
        if spec is None or not spec.submodule_search_locations:
            raise SystemExit(f"{PACKAGE} is not installed: pip install {PACKAGE}")
        folder = Path(spec.submodule_search_locations[0])
        (vectors,) = load_file(folder / "weights" / "l2_supercat_256.safetensors").values()
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizers" / "l2_supercat_tokenizer_config.json"))
        having = np.ones(len(vectors))
        for sentence in sentences:
            having[list(set(self._tokens(sentence)))] += 1
        self._vectors = vectors * np.log(1 + len(sentences) / having)[:, None]

    def _tokens(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def of(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """One row for each text."""
        rows = np.stack([self._vectors[self._tokens(text)].sum(axis=0) for text in texts])
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


async def _listed() -> list[Any]:
    async with Client(build_server()) as client:
        return list((await client.list_tools()).tools)


def sentences_of(tool: Any) -> list[str]:
    """What a client gets of a tool, one by one: name and title, each sentence of its description, each parameter."""
    description = " ".join((tool.description or "").split())
    keys = tool.input_schema.get("properties", {})
    return [
        f"{tool.name.replace('_', ' ')}: {tool.title or ''}",
        *re.split(r"(?<=[.?!])\s+(?=[A-Z])", description),
        *(f"{key.replace('_', ' ')}: {each['description']}" for key, each in keys.items() if "description" in each),
    ]


def routes(names: Collection[str]) -> dict[str, list[str]]:
    """What users say, by the tool that the skill's table names first; rows that name none of ``names`` are left out."""
    said: dict[str, list[str]] = {name: [] for name in names}
    for line in ROUTES.read_text(encoding="utf-8").splitlines():
        cells = line.split("|")[1:3]
        first = next((name for name in re.findall(r"`(\w+)`", cells[-1]) if name in said), None) if cells else None
        if first:
            said[first].append(cells[0].strip())
    return said


def scored(requests: dict[str, list[dict[str, str]]] | None = None) -> dict[str, list[Routed]]:
    """Each half's requests with the tools by score; those whose tool is not in this version are left out."""
    asked = requests or yaml.safe_load(REQUESTS.read_text(encoding="utf-8"))
    tools = anyio.run(_listed)
    names = [tool.name for tool in tools]
    said = routes(names)
    sentences = [sentences_of(tool) + said[tool.name] for tool in tools]
    embedding = Embedding(list(chain(*sentences)))
    vectors = [embedding.of(each) for each in sentences]
    rows = {half: [row for row in asked[half] if row["tool"] in names] for half in HALVES}
    near: dict[str, NDArray[np.float64]] = {}
    for half in HALVES:
        wanted = embedding.of([row["request"] for row in rows[half]])
        likeness = [np.exp(wanted @ each.T / SOFTNESS).mean(axis=1) for each in vectors]
        near[half] = SOFTNESS * np.log(np.stack(likeness, axis=1))
    usual = near[HALVES[0]].mean(axis=0)
    return {
        half: [
            Routed(row["request"], row["tool"], tuple(names[i] for i in np.argsort(-(scores - usual), kind="stable")))
            for row, scores in zip(rows[half], near[half], strict=True)
        ]
        for half in HALVES
    }


def table(halves: dict[str, list[Routed]]) -> str:
    """The score, and which tool took whose requests."""
    lines = ["| half | requests | first | among the first three |", "|---|---|---|---|"]
    for half, rows in halves.items():
        three = sum(row.wanted in row.ranked[:3] for row in rows)
        lines.append(f"| {half.replace('_', ' ')} | {len(rows)} | {sum(row.right for row in rows)} | {three} |")
    lines += ["", "| wanted | first instead | improved on | held out |", "|---|---|---|---|"]
    taken = Counter((row.wanted, row.ranked[0], half) for half, rows in halves.items() for row in rows if not row.right)
    for wanted, instead in sorted({key[:2] for key in taken}):
        counts = " | ".join(str(taken[wanted, instead, half] or "") for half in HALVES)
        lines.append(f"| `{wanted}` | `{instead}` | {counts} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Print the scores, or write them into a page."""
    halves = scored()
    if "--page" in sys.argv:
        page = Path(sys.argv[sys.argv.index("--page") + 1])
        start, end = _MARKS
        text = page.read_text(encoding="utf-8")
        page.write_text(
            re.sub(f"{start}.*?{end}", lambda _: f"{start}{table(halves)}{end}", text, flags=re.S), encoding="utf-8"
        )
        return 0
    print(table(halves))
    for row in halves[HALVES[0]]:  # the other half only measures: its requests are not to be read for hints
        if not row.right:
            print(f"{row.wanted:>18}: {row.ranked[0]} ({row.ranked.index(row.wanted) + 1}.) {row.request}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
