"""What a training job will do, worked out before it starts: the shape of every plan, and what the methods share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

from ..backends.embedded_memory import EmbeddedMemory, embedded_memory
from ..backends.estimate import CostEstimate, estimate_cost
from ..backends.meter import Usage
from ..backends.prices import load_prices, require_price_for_cap
from ..core.foreign_text import foreign
from ..core.paths import user_path
from ..core.settings import Origin, Settings
from ..data.mixtures import Mix, Sources, require_apart, resolved
from ..data.preferences import PreferenceCounts
from ..data.sources import DataSource, data_source
from ..data.supervised import TokenCounts
from ..doctrine.rules import integer
from ..models.capacity import CapacityReport, DataSize, capacity_report
from ..models.configs import ModelConfig, load_model_config
from ..models.hyperparameters import (
    Derived,
    derive_checkpoint_every,
    derive_eval_every,
    derive_max_seq_len,
    require_within_context,
)
from ..models.lora_params import require_accepted_rank
from ..models.model_catalog import retirement_note
from ..models.model_ref import resolve_model
from .config import OfflineConfig, TrainingConfig
from .server_fit import differences, fitted

ConfigT = TypeVar("ConfigT", bound=TrainingConfig, covariant=True)
AnyConfig = TypeVar("AnyConfig", bound=TrainingConfig)
OfflineT = TypeVar("OfflineT", bound=OfflineConfig)
Counts = TokenCounts | PreferenceCounts
Changes = dict[str, tuple[Any, Origin]]
# A comparison is asked in both orders.
ORDERS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan(Generic[ConfigT]):
    """A job ready to start.

    Attributes:
        kind: The kind of job, a key of `jobs.kinds.KINDS`.
        method: What it does, in a few words for people.
        unit: What its rows are: rows, pairs, prompts.
        settings: The config with every null derived, and the origin of each value.
        rows: Usable rows of the training file.
        total_steps: Optimizer steps (RL: sampling steps) of the whole run.
        tokens: Tokens to train, all passes together; in RL those to sample at most.
        capacity: The adapter's capacity beside the data's information; None in RL, whose information is not in tokens.
        cost: What it will cost, as a range.
        warnings: What the user should know before spending time or money.
        details: Further facts of the method, for the answer.
        sources: What each of several sources gives (see `contributions`).
        memory: What it needs of this machine on the embedded engine; None on any other backend.
        bills_elsewhere: Whether somebody besides the backend charges for it, such as a judge's service.
    """

    kind: str
    method: str
    unit: str
    settings: Settings[ConfigT]
    rows: int
    total_steps: int
    tokens: int
    capacity: CapacityReport | None
    cost: CostEstimate
    warnings: tuple[str, ...]
    details: Mapping[str, object] = field(default_factory=dict[str, object])
    sources: Sequence[Mapping[str, Any]] = ()
    memory: EmbeddedMemory | None = None
    bills_elsewhere: bool = False

    @property
    def files(self) -> tuple[Path, ...]:
        """The data files, absolute."""
        config = self.settings.config
        held_out = [Path(config.val_file)] if config.val_file else []
        return (*(source.file for source in config.sources), *held_out)

    def check_services(self) -> None:
        """See that what the job needs besides its backend answers. Costs nothing.

        Raises:
            ResearcherError: If a service does not answer, or refuses the key.
        """


def prepared(settings: Settings[AnyConfig], *, judged: bool = False) -> Settings[AnyConfig]:
    """The settings with absolute paths, since the worker runs in another folder; refused where they cannot work.

    Data of the hub is fetched.

    Args:
        settings: As the user gave them.
        judged: Whether the job pays judges besides its backend.

    Raises:
        ConfigError: If the backend lacks what a setting asks for, a cap cannot be held, or a file does not exist.
        BackendError: If a cluster does not answer, or cannot train.
    """
    settings = fitted(settings)
    config = settings.config
    require_accepted_rank(config.lora_rank, config.backend, where=settings.place("lora_rank"))
    prices = load_prices(asking=config.backend)
    require_price_for_cap(config, prices, where=settings.place("max_cost_usd"), judged=judged)
    changes: Changes = {}
    found: list[DataSource] = []

    def locate(key: str, name: str) -> Path:
        found.append(data_source(name, where=settings.place(key), bases=settings.bases))
        return found[-1].path

    def keep(key: str, value: str | Sources) -> None:
        facts = "; ".join(source.facts for source in found if source.facts)
        changes[key] = (value, settings.origins[key].model_copy(update={"reason": facts}))
        found.clear()

    if isinstance(config.train_file, str):
        keep("train_file", str(locate("train_file", config.train_file)))
    else:
        where = settings.place("train_file")
        keep("train_file", resolved(config.train_file, partial(locate, "train_file"), where=where))
    if config.val_file is not None:
        keep("val_file", str(locate("val_file", config.val_file)))
    if config.plan_file is not None:
        changes["plan_file"] = (str(settings.data_file("plan_file", config.plan_file)), settings.origins["plan_file"])
    if config.output_dir is not None:
        changes["output_dir"] = (str(user_path(config.output_dir).absolute()), settings.origins["output_dir"])
    return settings.derived(changes)


def with_model(settings: Settings[OfflineT]) -> tuple[Settings[OfflineT], ModelConfig]:
    """`prepared`, with ``max_seq_len`` filled in from the model's context where it was left out; and the model.

    Raises:
        ConfigError: As `prepared`, and if ``max_seq_len`` is above the context.
        ModelError: If the model cannot be had.
    """
    settings = prepared(settings)
    config = settings.config
    model = load_model_config(resolve_model(config.base_model))
    length = derive_max_seq_len(model, config.backend)
    context = None if length.value is None else int(length.value)
    require_within_context(config.max_seq_len, context, where=settings.place("max_seq_len"))
    if config.max_seq_len is None and length.value is not None:
        settings = settings.derived({"max_seq_len": _filled(length)})
    return settings, model


@dataclass(frozen=True, slots=True)
class Defaults:
    """What a method takes where the user left a setting out.

    Attributes:
        epochs: Passes over the data.
        batch_size: Rows per step, from the passes.
        learning_rate: From the number of steps.
    """

    epochs: Derived
    batch_size: Callable[[int], Derived]
    learning_rate: Callable[[int], Derived]


def derive_schedule(settings: Settings[AnyConfig], rows: int, defaults: Defaults) -> tuple[Settings[AnyConfig], int]:
    """Fill in length, batch size, learning rate and cadences where they were left out.

    Returns:
        The settings, and the steps of the whole run.
    """
    config = settings.config
    changes: Changes = {}

    def fill(key: str, derived: Derived) -> Any:
        changes[key] = _filled(derived)
        return derived.value

    epochs = config.num_epochs
    if config.num_steps is None and epochs is None:
        epochs = fill("num_epochs", defaults.epochs)
    if config.batch_size is None:
        fill("batch_size", defaults.batch_size(epochs or 1))
    total_steps = settings.derived(changes).config.total_steps(rows)
    if config.learning_rate is None:
        fill("learning_rate", defaults.learning_rate(total_steps))
    if config.eval_every is None:
        fill("eval_every", derive_eval_every(total_steps))
    if config.checkpoint_every is None:
        fill("checkpoint_every", derive_checkpoint_every(total_steps))
    return settings.derived(changes), total_steps


def _filled(derived: Derived) -> tuple[Any, Origin]:
    return derived.value, Origin(kind="derived", rule=derived.rule_id or None, reason=derived.reason)


def passes(steps: int, batch_size: int, rows: int) -> float:
    """Passes over the data in this many steps; the last batch of a pass may be a small one."""
    full, begun = divmod(steps, -(-rows // batch_size))
    return full + min(1.0, begun * batch_size / rows)


def contributions(
    config: TrainingConfig, mix: Mix, tokens: Sequence[int], *, rows: int, cost: CostEstimate
) -> list[dict[str, Any]]:
    """What each source of a list of them gives to a run; nothing for a single file.

    Args:
        config: The settings, complete.
        mix: The rows of each source, and how many of them a pass takes.
        tokens: Those that one pass over all rows of each source processes.
        rows: Rows of the whole run.
        cost: Of the run.

    Returns:
        For each its rows, those of the run, its epochs (how often a row of it is seen on average), its tokens, and its
        part of the expected cost, by tokens.
    """
    if isinstance(config.train_file, str):
        return []
    seen = mix.seen(rows, config.seed)
    epochs = [count / size for count, size in zip(seen, mix.sizes, strict=True)]
    processed = [count * share for count, share in zip(tokens, epochs, strict=True)]
    whole = sum(processed) or 1.0
    return [
        {
            "name": source.label,
            "rows": mix.sizes[i],
            "rows_in_run": seen[i],
            "share_of_rows": round(seen[i] / max(1, rows), 4),
            "epochs": round(epochs[i], 4),
            "tokens": round(processed[i]),
            "cost_usd": None if cost.expected is None else cost.expected * processed[i] / whole,
        }
        for i, source in enumerate(config.sources)
    ]


def validations(eval_every: int | None, total_steps: int) -> int:
    """How often a run validates: before every n-th step, and at the end."""
    return -(-total_steps // eval_every) + 1 if eval_every else 1


def estimated(config: TrainingConfig, usages: Sequence[Usage]) -> CostEstimate:
    """What a job costs that uses so much at least, as expected, and at most.

    Raises:
        ConfigError: If the price file is broken.
    """
    return estimate_cost(load_prices(asking=config.backend), config.backend, config.base_model, usages)


def capacity_of(
    config: TrainingConfig, model: ModelConfig, *, loss_tokens: int, rows: int, epochs: float
) -> CapacityReport:
    """The adapter's capacity beside so many tokens with loss per pass."""
    return capacity_report(
        model,
        lora_rank=config.lora_rank,
        data=DataSize(loss_tokens=loss_tokens, rows=rows, epochs=max(1, round(epochs))),
        backend=config.backend,
        apply_to=config.apply_to,
    )


def memory_of(config: TrainingConfig, model: ModelConfig, *, longest: int) -> EmbeddedMemory | None:
    """What training by sequences of up to ``longest`` tokens needs here; None if it is computed elsewhere.

    Raises:
        TooLargeError: If it does not fit this machine.
    """
    if config.backend != "embedded":
        return None
    context = model.integer("max_position_embeddings", default=longest)
    return embedded_memory(model, rank=config.lora_rank, length=max(1, min(longest, context)))


def require_usable_rows(settings: Settings[OfflineT], *files: Counts | None) -> None:
    """Raise the first row's problem, unless such rows are to be left out; and refuse held-out rows that are trained.

    Raises:
        DataError: If a row of the training files or of the held-out one cannot be used.
        ConfigError: If a file is both.
    """
    config = settings.config
    if config.val_file is not None:
        require_apart(config.sources, Path(config.val_file), where=settings.place("val_file"))
    for counts in files:
        if counts is not None and counts.problems and not config.skip_bad_rows:
            raise counts.problems[0]


def backend_warnings(config: TrainingConfig) -> list[str]:
    """What to know of the model on its backend: retirement, prices, what a server does otherwise, what precision costs.

    Raises:
        BackendError: If a cluster does not answer.
        ModelError: If the model cannot be had.
    """
    if config.backend != "tinker":
        return [*differences(config), *precision_warnings(config)]
    retirement, prices = retirement_note(config.base_model), load_prices().problem
    unread = f"the published prices could not be read again: {prices}. The cost says which copy it rests on"
    return [*([retirement] if retirement else []), *([unread] if prices else [])]


def precision_warnings(config: TrainingConfig) -> list[str]:
    """What the embedded engine's precision costs a model that is stored in a finer one.

    Measured on a model of 135M parameters in bfloat16: log-probabilities of the sampler and of the trainer are 0.037
    nat per token apart in the mean; in float32 they are equal.

    Raises:
        ModelError: If the model cannot be had.
    """
    if config.backend != "embedded":
        return []
    values = load_model_config(resolve_model(config.base_model)).values
    if "float32" not in str(values.get("dtype") or values.get("torch_dtype")):
        return []
    return [
        "the model is stored in float32, and the embedded engine computes in bfloat16 on hardware that has it (its "
        "log says which it took): log-probabilities of sampler and trainer are then apart, by 0.037 nat per token on a "
        "model of 135M parameters, and in float32 equal. To keep float32, which is slower, run "
        "`ml-researcher engine --model FOLDER --dtype float32` and use it as a cluster"
    ]


def shared_warnings(config: OfflineConfig, counts: Counts, total_steps: int, *, unit: str, unseen: str) -> list[str]:
    """What every plan over given texts warns of.

    Args:
        config: The settings.
        counts: What the training file holds.
        total_steps: Length of the run.
        unit: What a row is, in the plural.
        unseen: What cannot be seen without held-out rows.
    """
    warnings: list[str] = []
    if counts.problems:
        of_all = counts.rows + counts.unusable
        warnings.append(
            f"{counts.unusable:,} of {of_all:,} {unit} cannot be used and will be left out, the first: "
            f"{foreign(counts.problems[0])}"
        )
    warnings += [foreign(note) for note in counts.notes]
    if counts.truncated:
        warnings.append(f"{counts.truncated:,} {unit} are longer than max_seq_len {config.max_seq_len} and will be cut")
    least = integer("sft.steps.min")
    if total_steps < least:
        warnings.append(f"only {total_steps} steps: below {least} a run is hard to judge (sft.steps.min)")
    if config.val_file is None:
        warnings.append(f"no val_file: {unseen} cannot be seen and no best checkpoint is kept")
    return warnings
