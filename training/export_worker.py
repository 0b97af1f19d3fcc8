"""The process that makes one export: ``python -m ... < request.json``; lines of JSON on stdout say how it goes."""
# pyright: basic
# The cookbook's weights module, safetensors and huggingface_hub come without types for what is used here.

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

from ..core.errors import BackendError, ConfigError, ModelError, ResearcherError, StorageError
from ..core.extras import not_installed
from ..core.files import storage_errors, sync_folder, write_atomically
from .export import MARKER, ExportRequest, ExportResult
from .export_archive import fetch_archive

Progress = Callable[[str], None]
_ADAPTER = "adapter_model.safetensors"
_CONFIG, _INDEX = "config.json", "model.safetensors.index.json"
_HEAD, _EMBEDDING, _UNTIED = "lm_head.weight", "embed_tokens.weight", "untied-head.safetensors"
# Should the copy outlive us, it is gone within the hour, the shortest life that the platform allows.
_COPY_LIFE_S = 3600


def main() -> int:
    """Do what stdin asks; the last line on stdout is the result or the error."""
    said = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print must not mix with it
    read = json.loads(sys.stdin.read())
    request = ExportRequest(**{**read, "about": tuple(read["about"])})

    def say(**record: Any) -> None:
        print(json.dumps(record), file=said)

    try:
        result = run(request, lambda doing: say(progress=doing))
    except ResearcherError as error:
        kind = type(error).__name__
        say(error={"kind": kind, "problem": error.problem, "where": error.where, "fix": error.fix})
        return 1
    say(result={"folder": result.folder, "files": result.files, "url": result.url, "reused": result.reused})
    return 0


def run(request: ExportRequest, progress: Progress) -> ExportResult:
    """Make the folder, or take the equal one that is there, and publish it if asked to.

    Raises:
        StorageError: If the output is in the way, or cannot be written.
        BackendError: If the checkpoint cannot be downloaded, or the hub refuses.
        ModelError: If the adapter does not fit the base model, or its files cannot be had.
    """
    output = Path(request.output)
    if request.publish_to:
        _check_publishing(request)
    reused = _reusable(output, request)
    if not reused:
        _check_output(output, overwrite=request.overwrite)
        _build(request, output, progress)
    url = None
    if request.publish_to:
        progress(f"uploading to {request.publish_to}")
        url = _publish(request, request.publish_to, output)
    files = {str(f.relative_to(output)): f.stat().st_size for f in sorted(output.rglob("*")) if f.is_file()}
    return ExportResult(str(output), files, url, reused)


def _reusable(output: Path, request: ExportRequest) -> bool:
    """Whether an earlier call made the folder and could not publish it: then this one only publishes."""
    marker = output / MARKER
    if request.overwrite or not request.publish_to or not marker.is_file():
        return False
    made = json.loads(marker.read_bytes())
    return (made["checkpoint"], made["format"]) == (request.checkpoint, request.format)


def _check_output(output: Path, *, overwrite: bool) -> None:
    if not output.exists():
        return
    if not output.is_dir():
        raise StorageError("this is a file, and a folder is to be made", where=str(output), fix="Choose another")
    if not overwrite:
        raise StorageError("the folder exists already", where=str(output), fix="Give overwrite=true or another folder")
    if any(output.iterdir()) and not (output / MARKER).is_file():
        raise StorageError(
            f"the folder has files and no {MARKER}, so no export made it and it is not replaced",
            where=str(output),
            fix="Choose another folder",
        )


def _build(request: ExportRequest, output: Path, progress: Progress) -> None:
    """Assemble everything beside its place and move it there in one step."""
    with storage_errors(output.parent):
        output.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(dir=output.parent, prefix=f".{output.name}."))
    try:
        progress("downloading the checkpoint")
        adapter = _download(request, work / "checkpoint")
        progress("merging it into the base model" if request.format == "merged" else "writing the adapter")
        made = work / "made"
        with _export_errors(request):
            build = _merge if request.format == "merged" else _convert
            build(request, adapter, made, work)
        with storage_errors(made):
            _describe(request, made)
            _swap(made, output, work)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _download(request: ExportRequest, folder: Path) -> Path:
    """Save the state's weights as files that can be fetched, fetch them, and remove them again.

    The cookbook's own download of a state asks for encrypted files, which not every server makes; the files are as
    safe as the checkpoint itself, which lies on the same server.
    """
    if request.from_archive:
        fetch_archive(os.environ["TINKER_BASE_URL"], os.environ["TINKER_API_KEY"], request.checkpoint, folder)
        return folder
    try:
        import tinker
        from tinker_cookbook import weights
        from tinker_cookbook.exceptions import WeightsDownloadError

        from ..backends.sampling_client import closing_service
    except ImportError as error:
        raise not_installed(["tinker", "tinker-cookbook"], by="an export") from error
    try:
        if _is_state(request.checkpoint):
            with (
                closing_service(tinker.ServiceClient()) as service,
                _external_copy(service, request.checkpoint) as path,
            ):
                weights.download(tinker_path=path, output_dir=str(folder))
        else:
            weights.download(tinker_path=request.checkpoint, output_dir=str(folder))
    except tinker.TinkerError as error:
        raise BackendError(str(getattr(error, "message", error)), where=request.checkpoint) from error
    except WeightsDownloadError as error:
        fix = "" if _is_state(request.checkpoint) else "Give a training state (tinker://RUN/weights/NAME)"
        cause = f"{error}; {error.__cause__}" if error.__cause__ else str(error)
        raise BackendError(cause, where=request.checkpoint, fix=fix) from error
    return folder


def _is_state(checkpoint: str) -> bool:
    return checkpoint.split("/")[3:4] == ["weights"]


@contextlib.contextmanager
def _external_copy(service: Any, checkpoint: str) -> Generator[str]:
    import tinker

    client = service.create_training_client_from_state(checkpoint)
    client = client.result() if hasattr(client, "result") else client
    copy = client.save_weights_external(f"export-{uuid.uuid4().hex[:8]}", ttl_seconds=_COPY_LIFE_S).result().path
    try:
        yield copy
    finally:
        rest = tinker.RestClient()  # kept until the answer is there: a client that is let go takes its requests with it
        rest.delete_checkpoint_from_tinker_path(copy).result()


def _convert(request: ExportRequest, adapter: Path, made: Path, work: Path) -> None:
    """PEFT's names instead of Tinker's; for that the names of the base model's tensors are needed, not the tensors."""
    from tinker_cookbook import weights

    base = _skeleton(request.base_model, work / "base")
    weights.build_lora_adapter(base_model=str(base), adapter_path=str(adapter), output_path=str(made))
    config = json.loads((made / "adapter_config.json").read_bytes())
    named = {**config, "base_model_name_or_path": request.base_model}
    (made / "adapter_config.json").write_text(json.dumps(named, indent=2), encoding="utf-8")


def _merge(request: ExportRequest, adapter: Path, made: Path, work: Path) -> None:
    """Add B A to the weights. A tied head that was trained is untied first: it is no longer the embedding."""
    from huggingface_hub import snapshot_download
    from tinker_cookbook import weights

    base = Path(request.base_model)
    if not base.is_dir():
        base = Path(snapshot_download(request.base_model))
    if _trains_tied_head(base, adapter):
        base = _untied_copy(base, work / "untied")
    weights.build_hf_model(base_model=str(base), adapter_path=str(adapter), output_path=str(made))


def _trains_tied_head(base: Path, adapter: Path) -> bool:
    from safetensors import safe_open

    with safe_open(adapter / _ADAPTER, "pt") as file:
        trained = any("lm_head." in name for name in file.keys())  # noqa: SIM118
    return trained and not any(name.endswith(_HEAD) for name in _weight_map(base))


@contextlib.contextmanager
def _export_errors(request: ExportRequest) -> Generator[None]:
    import httpx
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, NotASafetensorsRepoError
    from tinker_cookbook.exceptions import TinkerCookbookError

    try:
        yield
    except (LocalEntryNotFoundError, HfHubHTTPError, NotASafetensorsRepoError, httpx.HTTPError) as error:
        fix = "Go online, set HF_ENDPOINT to a mirror, or HF_TOKEN for a gated model"
        raise ModelError("the base model's files cannot be had", where=request.base_model, fix=fix) from error
    except (TinkerCookbookError, KeyError, ValueError, FileNotFoundError) as error:
        fix = "Try format='adapter'" if request.format == "merged" else ""
        raise ModelError(f"the adapter does not fit: {error}", where=request.base_model, fix=fix) from error
    except OSError as error:
        with storage_errors(Path(request.output)):
            raise error


def _describe(request: ExportRequest, made: Path) -> None:
    facts = {"checkpoint": request.checkpoint, "format": request.format, "base_model": request.base_model}
    write_atomically(made / MARKER, json.dumps({**facts, "made": time.time()}, indent=2))
    if not (made / "README.md").exists():
        write_atomically(made / "README.md", model_card(request))


def model_card(request: ExportRequest) -> str:
    """A short README: what it is, of which base, how to load it. A folder of this machine shows its name alone."""
    is_folder = Path(request.base_model).is_dir()
    base = Path(request.base_model).name if is_folder else request.base_model
    adapter = request.format == "adapter"
    head = [f"library_name: {'peft' if adapter else 'transformers'}", "tags:", "- lora", "- sota-ml-researcher"]
    head += [] if is_folder else [f"base_model: {base}"]
    load = (
        f'base = AutoModelForCausalLM.from_pretrained("{base}")\nmodel = PeftModel.from_pretrained(base, FOLDER)'
        if adapter
        else "model = AutoModelForCausalLM.from_pretrained(FOLDER)"
    )
    title = f"# {'LoRA adapter for' if adapter else 'Fine-tune of'} {base}"
    lines = ["---", *head, "---", "", title, "", *(f"- {line}" for line in request.about), "", "```python", load, "```"]
    return "\n".join(lines) + "\n"


def _swap(made: Path, output: Path, work: Path) -> None:
    sync_folder(made)
    if output.exists():
        output.rename(work / "old")
    made.rename(output)
    sync_folder(output.parent)


def _check_publishing(request: ExportRequest) -> None:
    """Before any heavy work: is there a token, and could others use the result?

    Raises:
        BackendError: If there is no token.
        ConfigError: If the adapter's base model exists on this machine alone.
    """
    from huggingface_hub import get_token

    if request.format == "adapter" and Path(request.base_model).is_dir():
        raise ConfigError(
            "the base model is a folder on this machine, so nobody else could load the adapter",
            where="publish_to",
            fix="Publish the merged model: format='merged'",
        )
    if not get_token():
        raise BackendError(
            "the hub needs a token, and none is set", where="publish_to", fix="Set HF_TOKEN for the server"
        )


def _publish(request: ExportRequest, repository: str, folder: Path) -> str:
    """Upload the folder; returns the page's address.

    Raises:
        BackendError: If the hub refuses or cannot be reached. The folder stays.
    """
    import httpx
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    api = HfApi()
    kept = f"The export is in {folder}; the same call only publishes it"
    try:
        made = api.create_repo(repository, repo_type="model", private=request.private, exist_ok=request.overwrite)
        api.upload_folder(folder_path=folder, repo_id=repository, repo_type="model", ignore_patterns=[MARKER])
    except HFValidationError as error:
        raise BackendError(str(error), where="publish_to", fix=f"Write it as owner/name. {kept}") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        reasons = {
            401: "the hub refused the token (401); check HF_TOKEN",
            403: "the token may not write there (403); check its rights",
            409: "the repository exists already (409); give overwrite=true or another name",
        }
        raise BackendError(reasons.get(status, f"the hub answered {status}"), where=repository, fix=kept) from error
    except httpx.HTTPError as error:
        raise BackendError(f"the hub did not answer ({type(error).__name__})", where=repository, fix=kept) from error
    return str(made)


def _skeleton(base_model: str, folder: Path) -> Path:
    """A folder from which a model's tensor names and shapes can be read.

    That is the model folder itself, or the local cache where it has all of the model. Of a hub model only the headers
    of its files are read, and sparse files with the same tensors are made: an adapter of some MB must not cost a
    download of the whole base model.
    """
    if Path(base_model).is_dir():
        return Path(base_model)
    if cached := _cached(base_model):
        return cached
    from huggingface_hub import HfApi, hf_hub_download

    metadata = HfApi().get_safetensors_metadata(base_model)
    folder.mkdir()
    for name, file in metadata.files_metadata.items():
        _write_hollow(folder / name, {tensor: info.shape for tensor, info in file.tensors.items()})
    (folder / _CONFIG).write_bytes(Path(hf_hub_download(base_model, _CONFIG)).read_bytes())
    return folder


def _cached(base_model: str) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(base_model, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    shards = set(_weight_map(folder).values())
    complete = shards and all((folder / name).is_file() for name in (*shards, _CONFIG))
    return folder if complete else None


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


def _weight_map(base: Path) -> dict[str, str]:
    """Which file holds which tensor."""
    from safetensors import safe_open

    index = base / _INDEX
    if index.is_file():
        return json.loads(index.read_bytes())["weight_map"]
    places: dict[str, str] = {}
    for shard in sorted(base.glob("*.safetensors")):
        with safe_open(shard, "pt") as file:
            places |= dict.fromkeys(file.keys(), shard.name)
    return places


def _untied_copy(base: Path, folder: Path) -> Path:
    """A model folder whose output layer is a tensor of its own, equal to the embedding. Other files are links.

    Raises:
        ModelError: If it has no embedding under the usual name.
    """
    from safetensors import safe_open
    from safetensors.torch import save_file

    places = _weight_map(base)
    embedding = next((name for name in places if name.endswith(_EMBEDDING)), None)
    if embedding is None:
        raise ModelError(f"there is no tensor {_EMBEDDING}, so its output layer cannot be untied", where=str(base))
    folder.mkdir()
    for file in base.iterdir():
        if file.is_file() and file.name not in {_CONFIG, _INDEX}:
            (folder / file.name).symlink_to(file.resolve())
    with safe_open(base / places[embedding], "pt") as shard:
        save_file({_HEAD: shard.get_tensor(embedding).clone()}, folder / _UNTIED, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {**places, _HEAD: _UNTIED}}
    (folder / _INDEX).write_text(json.dumps(index))
    config = json.loads((base / _CONFIG).read_bytes())
    (folder / _CONFIG).write_text(json.dumps({**config, "tie_word_embeddings": False}))
    return folder


if __name__ == "__main__":
    sys.exit(main())
