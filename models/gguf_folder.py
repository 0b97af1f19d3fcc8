"""A GGUF file as a model folder: converted once, kept under the state folder by the SHA-256 of the file's bytes.

Everything that takes a model takes a folder (engine, tokenizer, capacity, export, judges), so one conversion serves
them all. For SmolLM2-135M (98 MB as Q4_1) it takes 2.6 seconds of one core, 203 MB of memory and 269 MB of disk;
reading the file anew would cost each of a job's processes that time.
"""

from __future__ import annotations

import json
import re
import shutil
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..core.errors import ModelError
from ..core.files import sha256_of, storage_errors, sync_folder, write_atomically
from ..core.paths import state_folder
from .gguf_file import SUFFIX, read_header

# Raised when the same file would be converted to something else.
_FORMAT = 1
_SOURCE = "gguf.json"
_LOCK_TIMEOUT_S = 1800.0


def is_gguf(path: Path) -> bool:
    """Whether this names a GGUF file, by its ending."""
    return path.suffix.lower() == SUFFIX


def folder_of_gguf(path: Path) -> Path:
    """The folder made from a GGUF file: config.json, weights, tokenizer.json and chat template.

    Raises:
        ModelError: If the file is cut, split, of an unknown architecture or tokenizer, or cannot be read.
        StorageError: If the folder cannot be written.
        MissingDependencyError: If the package ``gguf`` is not installed.
    """
    try:
        about = path.stat()
    except OSError as error:
        raise ModelError(f"the file cannot be read ({error.strerror})", where=str(path)) from error
    return _folder(path.resolve(), about.st_size, about.st_mtime_ns)


def file_digest(path: Path) -> str:
    """The SHA-256 of a file that does not change while this process lives."""
    about = path.stat()
    return _digest(path, about.st_size, about.st_mtime_ns)


@lru_cache(maxsize=64)
def _digest(path: Path, size: int, changed: int) -> str:
    del size, changed
    with storage_errors(path):
        return sha256_of(path)


def _folder(path: Path, size: int, changed: int) -> Path:
    digest = _digest(path, size, changed)
    home = state_folder("models")
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem)[:60].strip(".-") or "model"
    folder = home / f"{name}-{digest[:16]}-v{_FORMAT}"
    if _is_made(folder, digest):
        return folder
    from filelock import FileLock, Timeout

    try:
        with FileLock(home / f".{digest[:16]}.lock", timeout=_LOCK_TIMEOUT_S):
            if not _is_made(folder, digest):
                _make(path, folder, digest)
    except Timeout as error:
        problem = "another process has been converting this file for half an hour"
        raise ModelError(problem, where=str(path), fix="End that process and try again") from error
    return folder


def _is_made(folder: Path, digest: str) -> bool:
    try:
        return json.loads((folder / _SOURCE).read_bytes())["sha256"] == digest
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _make(path: Path, folder: Path, digest: str) -> None:
    """Write everything beside the folder's place, then rename. What a killed process left is removed first."""
    from .gguf_tokenizer import read_tokenizer
    from .gguf_weights import GgufModel

    file = read_header(path)
    model = GgufModel(file)
    tokenizer = read_tokenizer(file)
    tokens, rows = tokenizer.tokenizer.get_vocab_size(), model.config["vocab_size"]
    if tokens > rows:
        raise ModelError(f"its vocabulary has {tokens} tokens, and its embedding {rows} rows", where=str(path))
    partial = folder.with_name(f".{folder.name}.partial")
    for old in (partial, folder):
        shutil.rmtree(old, ignore_errors=True)
    try:
        with storage_errors(folder):
            partial.mkdir(mode=0o700)
            model.write(partial / "model.safetensors")
            tokenizer.tokenizer.save(str(partial / "tokenizer.json"))
            settings = {
                "tokenizer_class": "PreTrainedTokenizerFast",
                **tokenizer.special,
                "model_max_length": model.config["max_position_embeddings"],
                "clean_up_tokenization_spaces": False,
            }
            _write_json(partial / "tokenizer_config.json", settings)
            if tokenizer.template is not None:
                write_atomically(partial / "chat_template.jinja", tokenizer.template)
            if tokenizer.ends:
                _write_json(partial / "generation_config.json", {"eos_token_id": list(tokenizer.ends)})
            _write_json(partial / "config.json", model.config)
            _write_json(partial / _SOURCE, {"file": path.name, "sha256": digest})
            partial.rename(folder)
            sync_folder(folder.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _write_json(path: Path, values: dict[str, Any]) -> None:
    write_atomically(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")
