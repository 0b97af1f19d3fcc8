"""What stands between a plan and a job: packages, a backend that answers, and a yes before money is spent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from pydantic import BaseModel, Field

from ..backends.connection import connect, remote, supported_models
from ..backends.embedded import running_engine
from ..core.errors import MissingDependencyError, ModelError
from ..core.extras import require_packages
from ..core.foreign_text import named
from ..core.names import BackendName
from ..core.paths import require_creatable
from ..jobs import plan_store
from ..jobs.create import start_job
from ..jobs.job_results import base_model_of_checkpoint
from ..jobs.kinds import KINDS
from ..jobs.registry import Registry
from ..jobs.states import Link
from ..models.model_ref import resolve_model

if TYPE_CHECKING:
    from ..backends.estimate import CostEstimate
    from ..core.settings import Settings

# The arguments of every tool that starts a job.
ConfigPath = Annotated[str | None, Field(description="Path of a YAML config, or template://sft and the like")]
Overrides = Annotated[dict[str, Any] | None, Field(description="Settings that win over the file's")]
ValidateOnly = Annotated[bool, Field(description="Only show plan and cost")]
PlanId = Annotated[str | None, Field(description="From the plan the user agreed to")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """One exact job that may start.

    Attributes:
        kind: A key of `jobs.kinds.KINDS`.
        settings: Its resolved settings.
        files: Every data file it reads; the first names a job without ``run_name``.
        total_steps: Its length.
        price: The figures it is shown to cost, in any form that changes with them.
        bills_elsewhere: Whether somebody besides the backend may charge for it, such as a judge's service.
        trains: The base models it trains.
        samples: The models it samples: base models and tinker:// paths. Without either it needs no backend.
        parents: The jobs it builds on.
        starts_from: Checkpoints of its base model that it loads, by the setting that names them.
    """

    kind: str
    settings: Settings[Any]
    files: Sequence[Path]
    total_steps: int
    price: object
    bills_elsewhere: bool
    trains: Sequence[str] = ()
    samples: Sequence[str] = ()
    parents: Sequence[Link] = ()
    starts_from: Mapping[str, str] = field(default_factory=dict[str, str])


class Standing(BaseModel):
    """Where a launch stands: only planned, or started as a job."""

    job_id: str | None = None
    state: str = "planned"
    run_folder: str | None = None
    plan_id: str | None = None
    next: str

    @property
    def head(self) -> str:
        """The first words of an answer."""
        return f"{self.job_id}: {self.state}" if self.job_id else "Plan only, nothing was started"


class Planned(Standing):
    """A planned or started job, and what its plan worked out."""

    plan: dict[str, Any]

    def text(self, lines: Sequence[str]) -> str:
        """The answer for reading: where it stands, what was worked out, and what comes next."""
        files = [f"Files: {self.run_folder}"] if self.run_folder else []
        return "\n".join([f"{self.head}. {lines[0]}", *lines[1:], *files, f"Next: {self.next}"])


PlannedT = TypeVar("PlannedT", bound=Planned)


def launched(
    shape: type[PlannedT], launch: Launch, facts: dict[str, Any], *, validate_only: bool, plan_id: str | None
) -> PlannedT:
    """The answer to a launch; ``facts`` is what its plan worked out.

    Raises:
        ResearcherError: As `pass_gate`.
    """
    standing = pass_gate(launch, validate_only=validate_only, plan_id=plan_id)
    plan = {"state": standing.state, "run_folder": standing.run_folder, **facts}
    plan["config"] = launch.settings.config.model_dump(mode="json")
    return shape(**standing.model_dump(), plan=plan)


def pass_gate(launch: Launch, *, validate_only: bool, plan_id: str | None) -> Standing:
    """Start a job; or offer its plan, if only that is wanted or it may cost money and nobody has agreed yet.

    Raises:
        BackendError: If the backend does not answer or refuses the key.
        ModelError: If the backend does not train, or sample, a model of the job.
        MissingDependencyError: If packages of the job are not installed.
        JobError: If ``plan_id`` is not an open plan for exactly this job.
        StorageError: If the run folder cannot be written.
    """
    config, tool = launch.settings.config, KINDS[launch.kind].tool
    needs_backend = bool(launch.trains or launch.samples)
    if config.output_dir is not None:
        require_creatable(Path(config.output_dir), where=launch.settings.place("output_dir"))
    if needs_backend:
        require_models(config.backend, config.base_url, trains=launch.trains, samples=launch.samples)
        require_checkpoints(launch)
    extras = ("train" if needs_backend else None, KINDS[launch.kind].extra)
    if validate_only:
        again = f"call {tool} again without validate_only to start it"
        try:
            require_packages(*extras, by="a start")
        except MissingDependencyError as error:
            again = f"{error} Then {again}"
        return Standing(next=again)
    require_packages(*extras, by="this job")
    if plan_id is not None:
        plan_store.redeem(plan_id, launch.kind, _mark(launch))
    elif launch.bills_elsewhere or (needs_backend and _charges(config.backend)):
        offered = plan_store.offer(launch.kind, _mark(launch))
        again = f"call {tool} again with the same arguments and plan_id='{offered}'"
        return Standing(plan_id=offered, next=f"show the user this plan; if they agree, {again}")
    job = start_job(
        Registry(),
        launch.kind,
        config,
        launch.settings.origins,
        files=launch.files,
        total_steps=launch.total_steps,
        parents=launch.parents,
    )
    following = f"wait_for_job(job_id='{job.id}')"
    return Standing(job_id=job.id, state=job.state.value, run_folder=str(job.folder), next=following)


def require_models(
    backend: BackendName, base_url: str | None, *, trains: Sequence[str] = (), samples: Sequence[str] = ()
) -> None:
    """Refuse a remote backend that is not there or does not serve these models; the embedded engine takes any.

    Raises:
        BackendError: If it does not answer or refuses the key.
        ModelError: If it does not train, or sample, one of them.
    """
    if backend == "embedded":
        return
    served = {model.name: model for model in supported_models(remote(backend, base_url))}
    for verb, names in (("train", trains), ("sample", samples)):
        for name in names:
            if name.startswith("tinker://"):
                continue
            model = served.get(resolve_model(name).wire_name)
            if model is None or (model.trainable if verb == "train" else model.sampleable) is False:
                names_served = ", ".join(map(named, sorted(served)[:10])) or "none"
                from ..models.model_catalog import retirement_note

                retirement = retirement_note(name) if backend == "tinker" else None
                fix = f"{f'{retirement}. ' if retirement else ''}It serves: {names_served}"
                raise ModelError(f"{backend} does not {verb} this model", where=name, fix=fix)


def require_checkpoints(launch: Launch) -> None:
    """Refuse checkpoints that the backend does not have, or that are of another model than the one to be trained.

    The embedded engine is started only for a path that no job of ours recorded.

    Raises:
        ConfigError: If a checkpoint is of another model.
        BackendError: If there is no such checkpoint, or the backend does not answer.
    """
    config = launch.settings.config
    sampled = [name for name in launch.samples if name.startswith("tinker://")]
    paths = [*sampled, *launch.starts_from.values()]
    if config.backend == "embedded" and running_engine() is None:
        paths = [path for path in paths if base_model_of_checkpoint(path) is None]
    if not paths:
        return
    from ..backends.sampling_client import base_model_of
    from ..training.loop import check_same_base

    connection = connect(config.backend, config.base_url)
    for path in dict.fromkeys(set(sampled) & set(paths)):
        base_model_of(connection, path)
    loaded = {launch.settings.place(key): path for key, path in launch.starts_from.items() if path in paths}
    if loaded:
        check_same_base(connection, config.base_model, loaded)


def _charges(backend: str) -> bool:
    from ..backends.prices import load_prices

    return load_prices().charges(backend)


def _mark(launch: Launch) -> str:
    """What a yes is bound to: every setting, every byte of the files, and the prices that were shown."""
    from ..backends.prices import load_prices

    table = load_prices()
    # Figures alone: prices that were read again and found to be the same are the ones that were agreed to.
    priced = table.backends.get(launch.settings.config.backend)
    figures = priced.model_dump_json(exclude={"models": {"__all__": {"as_of", "origin"}}}) if priced else ""
    return plan_store.fingerprint(
        launch.kind, launch.settings.config.model_dump(mode="json"), launch.files, prices=f"{launch.price} {figures}"
    )


def hub_lines(settings: Settings[Any]) -> list[str]:
    """For each data set of the hub what it is, with its commit and size."""
    origins = {key: settings.origins.get(key) for key in ("train_file", "val_file", "test_set", "task", "prompts")}
    return [f"{key} of the hub: {origin.reason}." for key, origin in origins.items() if origin and origin.reason]


class Cost(BaseModel):
    """What a job will cost in US dollars; all null where a price is unknown. ``usage``: the expected tokens."""

    low: float | None
    expected: float | None
    high: float | None
    usage: dict[str, int]
    price_date: str | None
    storage_gb_month: float | None
    note: str

    @classmethod
    def of(cls, estimate: CostEstimate) -> Cost:
        """The same as an answer holds it."""
        return cls(**asdict(estimate))

    @property
    def text(self) -> str:
        """An estimate in half a line."""
        if self.expected is None or self.price_date is None:
            return self.note
        low, high = self.low or 0.0, self.high or 0.0
        spread = f" (${low:.4g} to ${high:.4g})" if high > low else ""
        return f"${self.expected:.4g}{spread} at prices of {self.price_date}, {self.note}"
