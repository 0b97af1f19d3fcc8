"""What an export needs of its base model: the names of its tensors, or a copy whose output layer stands alone."""

# pyright: basic
# safetensors and huggingface_hub come without types for what is used here.

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from sota_ml_researcher.core.errors import ModelError

CONFIG, INDEX = "config.json", "model.safetensors.index.json"
HEAD, EMBEDDING = "lm_head.weight", "embed_tokens.weight"


def skeleton(base_model: str, folder: Path) -> Path:
    """A folder from which a model's tensor names and shapes can be read.

    A model folder or one that is whole in the local cache is that folder. Of a hub model only the headers of its files
    are read: files are made with the same header and a hole for the data, since an adapter of some MB must not cost a
    download of the whole base model.
    """
    if Path(base_model).is_dir():
        return Path(base_model)
    if cached := _cached(base_model):
        return cached
    from huggingface_hub import HfApi, hf_hub_download

    found = HfApi().get_safetensors_metadata(base_model)
    folder.mkdir()
    for name, file in found.files_metadata.items():
        _write_hollow(folder / name, {tensor: info.shape for tensor, info in file.tensors.items()})
    (folder / CONFIG).write_bytes(Path(hf_hub_download(base_model, CONFIG)).read_bytes())
    return folder


def _cached(base_model: str) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(base_model, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    shards = set(weight_map(folder).values())
    whole = shards and all((folder / shard).is_file() for shard in shards) and (folder / CONFIG).is_file()
    return folder if whole else None


def _write_hollow(path: Path, shapes: dict[str, Any]) -> None:
    """A safetensors file with these tensors as bytes, all of them a hole in the file."""
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + math.prod(shape)
        header[name] = {"dtype": "U8", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


def weight_map(base: Path) -> dict[str, str]:
    """Which file holds which tensor."""
    from safetensors import safe_open

    index = base / INDEX
    if index.is_file():
        return json.loads(index.read_bytes())["weight_map"]
    found: dict[str, str] = {}
    for shard in sorted(base.glob("*.safetensors")):
        with safe_open(shard, "pt") as file:
            found |= dict.fromkeys(file.keys(), shard.name)
    return found


def untied_copy(base: Path, folder: Path) -> Path:
    """A model folder whose output layer is a tensor of its own, equal to the embedding. Other files are links.

    Raises:
        ModelError: If it has no embedding under the usual name.
    """
    from safetensors import safe_open
    from safetensors.torch import save_file

    places = weight_map(base)
    embedding = next((name for name in places if name.endswith(EMBEDDING)), None)
    if embedding is None:
        raise ModelError(f"there is no tensor {EMBEDDING}, so its output layer cannot be untied", where=str(base))
    folder.mkdir()
    for file in base.iterdir():
        if file.is_file() and file.name not in {CONFIG, INDEX}:
            (folder / file.name).symlink_to(file.resolve())
    with safe_open(base / places[embedding], "pt") as shard:
        save_file({HEAD: shard.get_tensor(embedding).clone()}, folder / "untied-head.safetensors", {"format": "pt"})
    index = {"metadata": {}, "weight_map": {**places, HEAD: "untied-head.safetensors"}}
    (folder / INDEX).write_text(json.dumps(index))
    config = json.loads((base / CONFIG).read_bytes())
    (folder / CONFIG).write_text(json.dumps({**config, "tie_word_embeddings": False}))
    return folder
