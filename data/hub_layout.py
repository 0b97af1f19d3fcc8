"""Which files of a hub repository are which configuration and split: the rules of `datasets`, and no script run."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, cast

from ..core.extras import not_installed
from .hub_reference import CONFIG
from .shards import KINDS, kind_of_file

# Splits by configuration, and the files of each.
Layout = Mapping[str, Mapping[str, Sequence[str]]]
DEFAULT = "default"
_SPLIT = re.compile(r"\w[\w.]{0,99}")
_CONVERTED = re.compile(rf"({CONFIG})/({_SPLIT.pattern})/\d+\.parquet")
_SHARD = re.compile(r"/(\w+(?:\.\w+)*)-\d{5}-of-\d{5}[^/]*$")
_MOST_STARS = 8
_NOT_DATA = frozenset({"config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"})


def layout_of(files: Iterable[str], card: Mapping[str, Any]) -> Layout:
    """Configurations, splits and their files; empty where there are none that can be read.

    What the card declares counts; then the folders of the hub's conversion to Parquet, ``config/split/0000.parquet``;
    then the names of files and folders, as `datasets` reads them.

    Args:
        files: The paths in the repository.
        card: The metadata at the head of its README, which a stranger wrote.
    """
    readable = sorted(file for file in files if is_data(file))
    declared = _objects(card.get("configs"))
    if declared:
        made = {_text(config.get("config_name")) or DEFAULT: _declared(config, readable) for config in declared}
        return {name: splits for name, splits in made.items() if splits and re.fullmatch(CONFIG, name)}
    converted = [match for match in map(_CONVERTED.fullmatch, readable) if match]
    if converted and len(converted) == len(readable):
        layout: dict[str, dict[str, list[str]]] = {}
        for match in converted:
            layout.setdefault(match[1], {}).setdefault(match[2], []).append(match[0])
        return layout
    splits = _inferred(readable)
    return {DEFAULT: splits} if splits else {}


def script_of(repository: str) -> str:
    """The name that a data set's own program has, where it has one."""
    return f"{repository.split('/')[-1]}.py"


def is_data(file: str) -> bool:
    """Whether a file of a repository may hold rows that are read here."""
    path = PurePosixPath(file)
    hidden = path.is_absolute() or any(part.startswith((".", "__")) for part in path.parts)
    return kind_of_file(path) in KINDS and path.name not in _NOT_DATA and not hidden


def _declared(config: Mapping[str, Any], readable: Sequence[str]) -> dict[str, list[str]]:
    """The splits of one entry of ``configs`` in a card."""
    folder = _text(config.get("data_dir")).strip("/")
    inside = [file for file in readable if not folder or file.startswith(f"{folder}/")]
    data_files = config.get("data_files")
    if data_files is None:
        return _inferred(inside, folder)
    entries = _objects(data_files)
    patterns = {_text(entry.get("split")): _texts(entry.get("path")) for entry in entries} or {
        "train": _texts(data_files)
    }
    prefix = f"{folder}/" if folder else ""
    made = {split: _matching([prefix + each for each in paths], inside) for split, paths in patterns.items()}
    return {split: found for split, found in made.items() if found and _SPLIT.fullmatch(split)}


def _inferred(readable: Sequence[str], folder: str = "") -> dict[str, list[str]]:
    """Splits by the names of files and folders; all is ``train`` where they say nothing."""
    if not readable:
        return {}
    try:
        rules: Any = importlib.import_module("datasets.data_files")
    except ImportError as error:
        raise not_installed(["datasets"], by="a data set of the hub that declares no splits") from error
    prefix = f"{folder}/" if folder else ""
    for pattern in rules.ALL_SPLIT_PATTERNS:  # data/{split}-00000-of-00003.parquet
        found = _matching([prefix + pattern.replace("{split}", "*")], readable)
        names = sorted({match[1] for match in map(_SHARD.search, found) if match}, key=_usual_order)
        if names:
            return {name: _matching([prefix + pattern.replace("{split}", name)], readable) for name in names}
    for named in rules.ALL_DEFAULT_PATTERNS:
        made = {
            str(split): _matching([prefix + each for each in each_of], readable) for split, each_of in named.items()
        }
        made = {split: found for split, found in made.items() if found}
        if made:
            return made
    return {}


def _usual_order(split: str) -> tuple[int, str]:
    usual = ("train", "validation", "test")
    return (usual.index(split) if split in usual else len(usual), split)


def _matching(patterns: Sequence[str], files: Sequence[str]) -> list[str]:
    """The files that any of the patterns matches, in the order of the patterns."""
    translate: Callable[[str], str] = importlib.import_module("fsspec.utils").glob_translate
    found: dict[str, None] = {}
    for pattern in patterns:
        if pattern.count("*") > _MOST_STARS:  # a stranger's pattern that would take for ever
            continue
        try:
            matches = re.compile(translate(pattern.removeprefix("./")))
        except ValueError:  # no pattern
            continue
        found |= dict.fromkeys(file for file in files if matches.match(file))
    return list(found)


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _texts(value: object) -> list[str]:
    values = cast("list[object]", value) if isinstance(value, list) else [value]
    return [each for each in values if isinstance(each, str)]


def _objects(value: object) -> list[Mapping[str, Any]]:
    values = cast("list[object]", value) if isinstance(value, list) else [value]
    return [cast("Mapping[str, Any]", each) for each in values if isinstance(each, Mapping)]
