"""From data and a goal to a first plan: method, settings with their rules, a ladder of runs, cost and evaluation."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from ..backends.prices import load_prices
from ..core.errors import ConfigError, ModelError
from ..core.foreign_text import foreign
from ..core.names import BackendName
from ..core.paths import writable_folder
from ..core.settings import Origin, Settings
from ..data.columns import ColumnMap
from ..data.holdout import Holdout, Question, Source, write_split
from ..data.shards import digest_of
from ..doctrine.rules import integer, rule
from ..evals.statistics.power import WORST_DEVIATION, items_needed, minimal_detectable_effect
from ..jobs.experiment_plan import PLAN_FILE, Alternative, Decision, ExperimentPlan, SmallestDifference, load_plan
from ..jobs.kinds import KINDS
from ..models.configs import load_model_config
from ..models.hyperparameters import Derived, derive_batch_size, derive_learning_rate, model_family
from ..models.model_ref import DEMO_NAME, resolve_model
from ..rewards.answer_extraction import gold_in
from .config import TrainingConfig
from .file_shape import FileShape, file_shape
from .ladder import Sized, ladder_of
from .method_choice import Choice, Kind, choose_method
from .plan import Plan
from .plan_words import by_rule, data_notes, hypothesis, stop_rule, unknowns, why_effect, why_held_out, why_rows

# Points of win rate, where the user names none: the difference for which rule judge.samples counts the prompts.
USUAL_EFFECT = 0.1
# What an assistant that judges by hand can be asked.
ASSISTANT_PROMPTS = 40
SEED = 0
# What each method logs on held-out rows; the first decides unless the goal names another.
METRICS: Mapping[str, tuple[str, ...]] = {
    "sft": ("test/nll", "test/bpb"),
    "dpo": ("test/accuracy", "test/dpo_loss", "test/margin"),
    "grpo": ("test/reward",),
}
_REWARDS = {"number": "math", "exact": "exact", None: "code"}
_USUAL_BATCH: Mapping[Kind, str] = {"sft": "sft.batch.default", "dpo": "dpo.batch", "grpo": "rl.batch"}
_DECIDED = ("lora_rank", "learning_rate", "batch_size", "beta", "group_size")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What somebody has and wants.

    Attributes:
        train_file: Rows of any shape.
        goal: What the model is to do better, in words; or a metric that the method logs.
        base_model: The model to tune, or None to have one proposed.
        backend: Where it is to run.
        base_url: Of a cluster.
        budget_usd: What all runs together may cost, or None.
        wanted_effect: The smallest difference that matters, in points of win rate, or None for the usual one.
        max_answer_tokens: The longest answer that is any use, such as for latency, or None.
        val_file: Rows held out already.
        test_set: Test rows set aside already.
        columns: Which columns of all these files are what, or None to have them proposed.
        folder: Where the plan goes.
    """

    train_file: Path
    goal: str
    base_model: str | None = None
    backend: BackendName = "embedded"
    base_url: str | None = None
    budget_usd: float | None = None
    wanted_effect: float | None = None
    max_answer_tokens: int | None = None
    val_file: Path | None = None
    test_set: Path | None = None
    columns: ColumnMap | None = None
    folder: Path

    @property
    def asked(self) -> dict[str, Any]:
        """The same as a plan keeps it, with the SHA-256 of each file."""
        made = {name: getattr(self, name) for name in self.__slots__ if name != "folder"}
        sums = {f"{name}_sha256": digest_of(value) for name, value in made.items() if isinstance(value, Path)}
        return {name: str(value) if isinstance(value, Path) else value for name, value in made.items()} | sums


@dataclass(frozen=True, slots=True)
class Proposal:
    """A plan with what its files are written from.

    Attributes:
        plan: The plan.
        shape: What the rows hold.
        split: Where they went.
        choice: The method and its reason.
        config: The training config's values.
        evaluation: The evaluation's.
        next_stage: The config of the method that follows, or None.
    """

    plan: ExperimentPlan
    shape: FileShape
    split: Holdout
    choice: Choice
    config: Mapping[str, Any]
    evaluation: Mapping[str, Any]
    next_stage: Mapping[str, Any] | None


def propose(wish: Wish) -> Proposal:
    """Choose, derive and count; writes the split data into the folder, and no plan.

    Raises:
        ConfigError: If a wish contradicts another, or another plan is in the folder.
        DataError: If the data cannot be used.
        ModelError: If the model's config cannot be had.
    """
    effect = USUAL_EFFECT if wish.wanted_effect is None else wish.wanted_effect
    needed = items_needed(effect, WORST_DEVIATION)
    shape = file_shape(wish.train_file, wish.columns)
    choice = choose_method(shape, wish.goal)
    metric = _metric(choice, wish.goal)
    model = _base_model(wish)
    resolve_model(model.value)
    _require_free(wish)
    split = _split(wish, shape, choice, needed)
    settings = _loaded(wish, shape, choice, model.value)
    sized = _sized(choice.kind, settings, split)
    there = min(split.test, ASSISTANT_PROMPTS) if shape.check is None else split.test
    ladder = ladder_of(sized, choice.kind, wish.budget_usd, charges=load_prices().charges(wish.backend))
    difference = SmallestDifference(
        points=effect,
        prompts_needed=needed,
        prompts_there=there,
        detectable_points=_two_digits(minimal_detectable_effect(there, WORST_DEVIATION)),
        why=why_effect(wish),
    )
    name = _run_name(wish)
    plan = ExperimentPlan(
        goal=wish.goal,
        method=choice.kind,
        method_rule=choice.rule,
        method_why=choice.why,
        hypothesis=hypothesis(choice, model.value, split, difference),
        primary_metric=metric,
        smallest_difference=difference,
        stop_rule=stop_rule(metric, effect, ladder.money),
        asked=wish.asked,
        settings={
            "base_model": model,
            "train_file": Decision(value="train.jsonl", rule=None, source=None, why=why_rows(split)),
            "val_file": Decision(**by_rule("data.holdout"), value="val.jsonl", why=why_held_out(wish, split)),
            **sized.decisions,
        },
        ladder=ladder.rungs,
        evaluation="evaluation.yaml",
        cost_usd=ladder.cost_usd,
        cost_note=ladder.note,
        alternatives=tuple(Alternative(take=take, when=when) for take, when in choice.alternatives),
        unknown=(*unknowns(wish, shape, choice, sized, difference), *ladder.unknown),
        data=tuple(data_notes(wish, shape, split, sized)),
    )
    keys = {key: each.value for key, each in plan.settings.items() if each.value is not None}
    place = {"backend": wish.backend} | ({"base_url": wish.base_url} if wish.base_url else {})
    heads = {"hypothesis": plan.hypothesis, "primary_metric": metric, "stop_rule": plan.stop_rule}
    config = {
        "kind": choice.kind,
        "run_name": name,
        "plan_file": PLAN_FILE,
        **heads,
        **keys,
        **_fixed(shape, choice, wish),
        **place,
    }
    if ladder.cap_usd is not None:
        config["max_cost_usd"] = ladder.cap_usd
    judged = {"judge_model": f"check:{shape.check}"} if shape.check else {"judge_model": "assistant"}
    evaluation = {
        "kind": "judge_eval",
        "run_name": f"{name}-against-base",
        "test_set": "test.jsonl",
        "baseline_model": model.value,
        "finetuned_model": model.value,
        **judged,
        **({"num_samples": there} if there < split.test else {}),
        "wanted_effect": effect,
        **({"max_response_tokens": wish.max_answer_tokens} if wish.max_answer_tokens else {}),
        "seed": SEED,
        **place,
    }
    return Proposal(
        plan, shape, split, choice, config, evaluation, _next_stage(name, model.value, shape, choice, place)
    )


def _metric(choice: Choice, goal: str) -> str:
    """The metric that decides: the goal's, if it names one."""
    logged = METRICS[choice.kind]
    word = goal.strip()
    if word in logged:
        return word
    if "/" in word and " " not in word:
        raise ConfigError(
            f"{choice.kind} logs no metric {foreign(word, 60)}", where="goal", fix=f"It logs {', '.join(logged)}"
        )
    return logged[0]


def _base_model(wish: Wish) -> Decision:
    if wish.base_model is not None:
        return Decision(value=wish.base_model, rule=None, source=None, why="as asked")
    if wish.backend == "cluster":
        raise ConfigError("which models a cluster serves is not known here", where="base_model", fix="Name one")
    if wish.backend == "embedded":
        why = "none was named: the packaged model shows that the path works, not what a real model learns"
        return Decision(**by_rule("workflow.small_first"), value=DEMO_NAME, why=why)
    backend = load_prices().backends.get(wish.backend)
    priced = {name: price.train for name, price in backend.models.items() if price.train is not None} if backend else {}
    fitted = [name for name in priced if model_family(load_model_config(resolve_model(name))) is not None]
    if not fitted:
        raise ConfigError(f"no model of {wish.backend} has a known price", where="base_model", fix="Name one")
    cheapest = min(fitted, key=lambda name: (priced[name], name))
    why = (
        f"none was named: the cheapest to train (${priced[cheapest]:g} per million tokens) whose rate is known by rule"
    )
    return Decision(**by_rule("workflow.small_first"), value=cheapest, why=why)


def _require_free(wish: Wish) -> None:
    """Refuse a folder with the plan of something else: it is a record."""
    writable_folder(wish.folder)
    file = wish.folder / PLAN_FILE
    if file.exists() and load_plan(file).asked != wish.asked:
        raise ConfigError(
            f"{file} is the plan of something else", where="output_dir", fix="Give another folder, or remove it"
        )


def _split(wish: Wish, shape: FileShape, choice: Choice, needed: int) -> Holdout:
    def test_row(question: Question) -> dict[str, Any]:
        reference = question.reference
        if shape.check is not None and reference is not None:
            reference = gold_in(reference)
        return {"messages": list(question.prompt)} | ({} if reference is None else {"reference": reference})

    def checkable(question: Question) -> dict[str, Any]:
        return {"messages": list(question.prompt), "answer": gold_in(question.reference or "")}

    def worked(question: Question) -> dict[str, Any]:
        return {"prompt": list(question.prompt), "completion": question.reference}

    def also(file: Path | None) -> Source | None:
        return Source(file, shape.source.columns, shape.source.use) if file else None

    rewrite = None
    if choice.kind == "grpo" and shape.signal != "tests":
        rewrite = checkable
    elif choice.then == "grpo":
        rewrite = worked
    return write_split(
        shape.source,
        wish.folder,
        seed=SEED,
        test_wanted=needed,
        test_row=test_row,
        train_row=rewrite,
        val=also(wish.val_file),
        test=also(wish.test_set),
    )


def _fixed(shape: FileShape, choice: Choice, wish: Wish) -> dict[str, Any]:
    """Settings of the method that the data fix."""
    values: dict[str, Any] = {"seed": SEED}
    if choice.kind == "grpo":
        values["reward_type"] = _REWARDS[shape.check]
        if wish.max_answer_tokens:
            values["max_response_tokens"] = wish.max_answer_tokens
    return values


def _loaded(wish: Wish, shape: FileShape, choice: Choice, model: str) -> Settings[Any]:
    values: dict[str, Any] = {
        "base_model": model,
        "train_file": str(wish.folder / "train.jsonl"),
        "val_file": str(wish.folder / "val.jsonl"),
        "backend": wish.backend,
        "base_url": wish.base_url,
        **_fixed(shape, choice, wish),
    }
    return resolve_name(KINDS[choice.kind].load)(
        None, {key: value for key, value in values.items() if value is not None}
    )


def _sized(kind: Kind, settings: Settings[Any], split: Holdout) -> Sized:
    """What the real run processes and by which settings, as its own plan derives them."""
    make = resolve_name(KINDS[kind].plan)
    try:
        plan: Plan[TrainingConfig] = make(settings)
    except ModelError as error:
        return _unsized(kind, settings, split, str(error))
    least = integer("sft.steps.min")
    if kind == "grpo" and plan.total_steps < least:
        again = Origin(kind="derived", rule="sft.steps.min", reason="prompts come again, and their samples are new")
        plan = make(settings.derived({"num_steps": (least, again)}))
    capacity, rank = plan.capacity, "the default"
    if capacity is not None and capacity.verdict != "sufficient" and capacity.smallest_sufficient_rank is not None:
        rank = f"rank {settings.config.lora_rank} is {capacity.verdict} for {capacity.data_bits:,} bits"
        origin = Origin(kind="derived", rule="lora.capacity.margin", reason=rank)
        plan = make(settings.derived({"lora_rank": (capacity.smallest_sufficient_rank, origin)}))
    if plan.capacity is not None:
        room = f"{rank}; capacity {plan.capacity.verdict}, ratio {plan.capacity.ratio:.3g}"
    else:
        room = f"{rank}; RL needs little ({rule('lora.rank.rl').claim.rstrip('.')})"
    return Sized(
        steps=plan.total_steps,
        tokens=plan.tokens,
        cost_usd=plan.cost.expected,
        cost_note=plan.cost.note,
        rows=plan.rows,
        decisions=_decisions(plan.settings, plan.total_steps, room),
        warnings=plan.warnings,
        problem=None,
    )


def _decisions(settings: Settings[Any], steps: int, room: str) -> dict[str, Decision]:
    decisions: dict[str, Decision] = {}
    for key in _DECIDED:
        if (value := getattr(settings.config, key, None)) is not None:
            origin = settings.origins[key]
            why = room if key == "lora_rank" else origin.reason or (rule(origin.rule).claim if origin.rule else "")
            decisions[key] = Decision(**by_rule(origin.rule), value=value, why=why)
    passes = settings.config.num_epochs
    length = settings.origins["num_epochs" if passes else "num_steps"]
    why = f"{passes} {'pass' if passes == 1 else 'passes'} over the rows: {length.reason}" if passes else length.reason
    decisions["num_steps"] = Decision(**by_rule(length.rule), value=steps, why=why)
    return decisions


def _unsized(kind: Kind, settings: Settings[Any], split: Holdout, problem: str) -> Sized:
    """The same where the model's tokenizer cannot be had: what follows from rows and config alone."""
    config = settings.config
    model = load_model_config(resolve_model(config.base_model))
    batch = derive_batch_size(split.train, usual=_USUAL_BATCH[kind])
    steps = -(-split.train // int(batch.value or 1))
    made = {"batch_size": batch, "num_steps": Derived(steps, "sft.epochs.default", "one pass over the rows")}
    if kind == "sft":
        made["learning_rate"] = derive_learning_rate(model, steps=steps)
    unsure = "the default; whether it is enough is not known until tokens can be counted"
    made["lora_rank"] = Derived(config.lora_rank, "lora.rank.default", unsure)
    decisions = {key: Decision(**by_rule(one.rule_id), value=one.value, why=one.reason) for key, one in made.items()}
    return Sized(
        steps=steps,
        tokens=None,
        cost_usd=None,
        cost_note="unknown: no tokens could be counted",
        rows=split.train,
        decisions=decisions,
        warnings=(),
        problem=problem,
    )


def _next_stage(
    name: str, model: str, shape: FileShape, choice: Choice, place: Mapping[str, Any]
) -> dict[str, Any] | None:
    """The config of the RL run that follows SFT on worked solutions; it reads the same rows by other columns."""
    if choice.then is None:
        return None
    return {
        "kind": choice.then,
        "run_name": f"{name}-{choice.then}",
        "base_model": model,
        "load_checkpoint": None,
        "train_file": "train.jsonl",
        "val_file": "val.jsonl",
        "columns": {"prompt": "prompt", "answer": "completion"},
        "num_steps": integer("sft.steps.min"),
        "reward_type": _REWARDS[shape.check],
        "seed": SEED,
        **place,
    }


def _run_name(wish: Wish) -> str:
    stem = re.sub(r"[^a-z0-9]+", "-", wish.train_file.stem.lower()).strip("-")
    return (stem or "plan")[:40]


def _two_digits(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.2g}")
