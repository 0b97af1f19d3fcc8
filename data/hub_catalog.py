"""What the hub says of a data set at one revision: commit, files, card; kept for when the hub is out of reach."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from ..core.errors import DataError, did_you_mean
from ..core.files import write_atomically
from ..core.foreign_text import named
from ..core.paths import state_folder, writable_folder
from ..core.redaction import keep_secret
from ..models.hub import cache_if_offline, hub_client
from .hub_layout import Layout, is_data, layout_of, script_of
from .hub_reference import HubReference

T = TypeVar("T")
CONVERTED = "refs/convert/parquet"
COMMIT = re.compile(r"[0-9a-f]{40}")
_TIMEOUT_S = 15.0
_NEAR_NAMES = 30
_SHOWN = 8


class HubOutOfReachError(DataError):
    """The hub does not answer, or is not to be asked (``HF_HUB_OFFLINE``)."""


class NoSuchDatasetError(DataError):
    """The hub has no data set of this name, or does not show it."""


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file's ``size`` in bytes and, for a large one, the SHA-256 that the hub states."""

    size: int
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class HubDataset:
    """A data set at one commit.

    Attributes:
        repository: ``owner/name``, as the hub spells it.
        commit: The commit, 40 hexadecimal digits.
        files: Those that may hold rows, by their paths, and its own program where it has one.
        card: The metadata at the head of its README, which a stranger wrote.
        tags: The hub's tags, such as ``license:mit``.
        downloads: Of the last 30 days.
        gated: Whether access has to be asked for.
        note: Why this may not be what the hub would say now, or nothing.
    """

    repository: str
    commit: str
    files: Mapping[str, HubFile]
    card: Mapping[str, Any]
    tags: tuple[str, ...] = ()
    downloads: int | None = None
    gated: bool = False
    note: str = ""

    def layout(self) -> Layout:
        """Its configurations, splits and their files.

        Raises:
            DataError: If it has no files that can be read, or only a program that would make some.
        """
        layout = layout_of(self.files, self.card)
        script = script_of(self.repository)
        if layout and (script not in self.files or self.card.get("configs")):
            return layout
        if script in self.files:
            raise DataError(
                f"its rows are made by a program of its own ({script}), and no data set's program is run here",
                where=self.repository,
                fix=f"The hub may have converted it to Parquet: {self.repository}@{CONVERTED}",
            )
        raise DataError(
            "it has no files that are read here (.jsonl, .json, .csv, .tsv, .parquet, .arrow)", where=self.repository
        )


def catalog_folder(repository: str) -> Path:
    """Where all that was fetched of a data set lies."""
    return state_folder("datasets") / repository.replace("/", "--")


def hub_api() -> Any:
    """A client of the hub at ``HF_ENDPOINT``, with the token at hand, which is never shown."""
    hub = hub_client("a data set of the hub")
    token = hub.get_token()
    if token:
        keep_secret(token)
    return hub.HfApi(endpoint=hub.constants.ENDPOINT, token=token)


def look_up(repository: str, revision: str) -> HubDataset:
    """What the hub says of a data set; of a commit that was looked up before without asking.

    Raises:
        DataError: If there is no such data set or revision, it may not be seen, or the hub asks to wait.
        HubOutOfReachError: If the hub is out of reach, and this revision was never looked up.
    """
    if COMMIT.fullmatch(revision) and (saved := _saved(repository, revision)):
        return saved
    api = hub_api()
    try:
        info = asked(
            lambda: api.dataset_info(repository, revision=revision, files_metadata=True, timeout=_TIMEOUT_S),
            repository,
            revision,
        )
    except HubOutOfReachError as error:
        saved = _saved(repository, revision)
        if saved is None:
            raise
        return replace(saved, note=f"{error.problem}: {revision} is the commit that it was when last asked")
    found = HubDataset(
        repository=str(info.id),
        commit=str(info.sha),
        files={name: _file(each) for each in info.siblings or () if _is_kept(name := str(each.rfilename), repository)},
        card=_plain(info.card_data.to_dict() if info.card_data else {}),
        tags=tuple(map(str, info.tags or ())),
        downloads=info.downloads,
        gated=bool(info.gated),
    )
    record = json.dumps(asdict(found)) + "\n"
    writable_folder(catalog_folder(repository), private=True)
    for name in {revision, found.commit}:
        write_atomically(_record(repository, name), record)
    return found


def _is_kept(file: str, repository: str) -> bool:
    return is_data(file) or file == script_of(repository)


def _file(sibling: Any) -> HubFile:
    lfs = sibling.lfs
    return HubFile(int(sibling.size or 0), str(lfs.sha256) if lfs is not None and lfs.sha256 else None)


def _plain(card: Mapping[str, Any]) -> dict[str, Any]:
    """What JSON can hold of a card: YAML knows dates, too."""
    return json.loads(json.dumps(card, default=str))


def _record(repository: str, revision: str) -> Path:
    return catalog_folder(repository) / f"{quote(revision, safe='')}.json"


def _saved(repository: str, revision: str) -> HubDataset | None:
    try:
        record: dict[str, Any] = json.loads(_record(repository, revision).read_bytes())
        record["files"] = {path: HubFile(**facts) for path, facts in record["files"].items()}
        record["tags"] = tuple(record["tags"])
        return HubDataset(**record)
    except (FileNotFoundError, ValueError, LookupError, TypeError):  # none, or of another version of this program
        return None


def asked(question: Callable[[], T], repository: str, revision: str) -> T:
    """What the hub's API answers.

    Raises:
        DataError: As `hub_errors`, and if the answer is none of a hub.
    """
    with hub_errors(repository, revision):
        try:
            return question()
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
            raise _no_hub(f"{repository}@{revision}") from error


def _no_hub(where: str) -> DataError:
    from huggingface_hub import constants

    problem = f"what answers at {constants.ENDPOINT} does not answer as a hub does"
    return DataError(problem, where=where, fix="Check HF_ENDPOINT, and the proxy")


@contextmanager
def hub_errors(repository: str, revision: str) -> Generator[None]:
    """Within it what the hub's client raises becomes a sentence; a hub out of reach is noticed once, not per file.

    Raises:
        DataError: For what the hub refuses.
        HubOutOfReachError: If it does not answer.
    """
    import httpx
    from huggingface_hub import constants, errors

    where = f"{repository}@{revision}"
    away = (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError, httpx.TransportError)
    try:
        with cache_if_offline():
            yield
    except away as error:
        if isinstance(error.__cause__, errors.HfHubHTTPError):
            raise _refused(error.__cause__, repository, revision) from error
        offline = constants.HF_HUB_OFFLINE
        raise HubOutOfReachError(
            "HF_HUB_OFFLINE is set" if offline else f"the hub at {constants.ENDPOINT} is out of reach",
            where=where,
            fix="Unset it, or use a data set that was fetched" if offline else "Go online, or set HF_ENDPOINT",
        ) from error
    except errors.HfHubHTTPError as error:
        raise _refused(error, repository, revision) from error
    except errors.HFValidationError as error:
        raise DataError("this is no name of a data set", where=where, fix="It has the form owner/name") from error
    except errors.FileMetadataError as error:
        raise _no_hub(where) from error


def _refused(error: Any, repository: str, revision: str) -> DataError:
    """The sentence for what the hub answered."""
    from huggingface_hub import constants, errors

    status = error.response.status_code
    where = f"{repository}@{revision}"
    page = f"{constants.ENDPOINT}/datasets/{repository}"
    has_token = bool(hub_client("the hub").get_token())
    if isinstance(error, errors.GatedRepoError):
        token = "the account of your token has to be granted it" if has_token else "and set HF_TOKEN"
        return DataError("access to it has to be asked for", where=where, fix=f"Ask for it on {page}: {token}")
    if isinstance(error, errors.RevisionNotFoundError):
        return DataError(
            f"the data set has no revision '{revision}'",
            where=repository,
            fix=f"Its branches and tags: {page}/tree/main",
        )
    # Without a token the hub says 401 of what is not there; its client knows that of https:// addresses only.
    if isinstance(error, errors.RepositoryNotFoundError) or (status == 401 and not has_token):
        near = near_names(repository)
        hidden = "" if has_token else "; a private one needs HF_TOKEN"
        fix = did_you_mean(repository, near) or (
            f"Near names: {', '.join(map(named, near[:_SHOWN]))}" if near else "Check the name"
        )
        problem = f"the hub has no data set of this name that may be seen{hidden}"
        return NoSuchDatasetError(problem, where=where, fix=fix)
    if status in (401, 403):
        return DataError("the hub refuses the token", where=where, fix="Check HF_TOKEN, and what it may read")
    if status == 429:
        wait = error.response.headers.get("Retry-After", "")
        when = f"in {wait} seconds" if wait.isdigit() else "in some minutes"
        more = "" if has_token else "; with HF_TOKEN it allows more"
        return DataError("the hub gets too many requests from here", where=where, fix=f"Try again {when}{more}")
    return DataError(f"the hub answered {status}", where=where, fix="Try again later")


def near_names(repository: str) -> list[str]:
    """Data sets of the hub with names like this one; none where the hub says nothing."""
    import httpx
    from huggingface_hub import errors

    api = hub_api()
    owner, _, name = repository.rpartition("/")
    try:
        found = list(api.list_datasets(search=name, limit=_NEAR_NAMES))
        return [str(each.id) for each in found or api.list_datasets(author=owner, limit=_NEAR_NAMES)]
    except (errors.HfHubHTTPError, errors.OfflineModeIsEnabled, httpx.TransportError):
        return []


def references(dataset: HubDataset, reference: HubReference) -> list[HubReference]:
    """Every configuration and split that a reference may mean, at the data set's commit.

    Raises:
        DataError: As `HubDataset.layout`, and if it has no configuration or split of that name.
    """
    if reference.split in dataset.files and reference.config is None:
        return [HubReference(dataset.repository, None, reference.split, reference.rows, dataset.commit)]
    layout = dataset.layout()
    where = str(reference)
    if reference.config is not None and reference.config not in layout:
        raise _unknown("configuration", reference.config, layout, where)
    configs = [reference.config] if reference.config else list(layout)
    made: list[HubReference] = []
    for config in configs:
        for split in layout[config]:
            if reference.split in (None, split):
                shown = config if len(layout) > 1 else None
                made.append(HubReference(dataset.repository, shown, split, reference.rows, dataset.commit))
    if not made:
        splits = dict.fromkeys(split for config in configs for split in layout[config])
        raise _unknown("split", str(reference.split), splits, where)
    return made


def _unknown(what: str, name: str, there: Mapping[str, object], where: str) -> DataError:
    listed = ", ".join(named(each, 60) for each in list(there)[:_SHOWN])
    return DataError(
        f"the data set has no {what} '{name}'", where=where, fix=did_you_mean(name, there) or f"There are: {listed}"
    )
