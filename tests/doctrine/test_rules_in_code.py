"""Rules and code hold each other: an id in the code exists, and a rule with a value is read or marked informational."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import sota_ml_researcher.core.paths as anchor
from sota_ml_researcher.doctrine.rules import load_rules

ROOT = Path(anchor.__file__).parents[1]
NOT_PRODUCT = {"tests", "benchmarks", "scripts", "build", "doctrine", "engine"}
FAMILIES = sorted({rule_id.split(".")[0] for rule_id in load_rules()} - {"tinker"})  # tinker.* are module names too
FILE_ENDINGS = {"csv", "db", "html", "json", "jsonl", "log", "md", "parquet", "png", "py", "txt", "yaml", "yml"}


def package_sources() -> list[Path]:
    folders = {path.parent for path in ROOT.glob("*/__init__.py")} - {ROOT / name for name in NOT_PRODUCT}
    return sorted(path for folder in folders for path in folder.rglob("*.py"))


def mentioned(tree: ast.AST) -> Iterator[str]:
    """A pattern for every string that looks like a rule's id; the holes of an f-string match one part."""
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
            yield re.escape(node.value)
        elif isinstance(node, ast.JoinedStr):
            parts = (re.escape(p.value) if isinstance(p, ast.Constant) else r"[a-z0-9_]+" for p in node.values)
            yield "".join(parts)


def rule_patterns(path: Path) -> set[str]:
    looks_like_id = re.compile(rf"({'|'.join(FAMILIES)})\\\.[a-z0-9_\\.\[\]+-]+")
    found = {p for p in mentioned(ast.parse(path.read_text(encoding="utf-8"))) if looks_like_id.fullmatch(p)}
    return {pattern for pattern in found if pattern.rsplit("\\.", 1)[-1] not in FILE_ENDINGS}


def rules_matching(pattern: str) -> set[str]:
    return {rule_id for rule_id in load_rules() if re.fullmatch(pattern, rule_id)}


def test_the_package_is_where_it_is_looked_for() -> None:
    assert {path.parent.name for path in package_sources()} >= {"training", "tools", "jobs", "server"}


@pytest.mark.parametrize("path", package_sources(), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_rule_the_code_names_exists(path: Path) -> None:
    assert {pattern for pattern in rule_patterns(path) if not rules_matching(pattern)} == set()


def test_every_rule_with_a_value_is_read_by_the_code_or_marked_informational() -> None:
    used = {r for path in package_sources() for pattern in rule_patterns(path) for r in rules_matching(pattern)}
    assert len(used) > 20
    unread = [r.id for r in load_rules().values() if r.value is not None and not r.informational and r.id not in used]
    assert unread == [], "read them in the code, or add `informational: true`"


def test_names_that_only_look_like_rules_are_told_apart(tmp_path: Path) -> None:
    source = tmp_path / "x.py"
    source.write_text(
        'a = ["data.jsonl", "sft.yaml", "lora.lr.nope", f"lora.lr.exponent.{a}", "my data.leakage", "rl"]'
    )
    assert rule_patterns(source) == {r"lora\.lr\.nope", r"lora\.lr\.exponent\.[a-z0-9_]+"}
    assert rules_matching(r"lora\.lr\.exponent\.[a-z0-9_]+") == {"lora.lr.exponent.llama", "lora.lr.exponent.qwen"}
