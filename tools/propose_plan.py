"""`propose_plan`: data and a goal in, a plan with configs that run out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from mcp.server.mcpserver import Context
from mcp_types import CallToolResult
from pydantic import BaseModel, Field

from ..core.errors import ConfigError
from ..core.names import BackendName
from ..core.paths import state_folder, user_path
from ..data.sources import DataSource
from .answers import answer, number
from .background import (
    CALL_AGAIN,
    ColumnsArgument,
    WorkProgress,
    data_sources,
    file_identity,
    forget,
    run_in_background,
)
from .data import TrainFile

if TYPE_CHECKING:
    from ..jobs.experiment_plan import ExperimentPlan
    from ..training.proposal import Wish

_LONGEST_GOAL = 300


class PlanAnswer(BaseModel):
    """``plan``: what plan.yaml holds."""

    done: bool
    files: list[str] = []
    plan: dict[str, Any] | None = None
    next: str


async def propose_plan(
    train_file: TrainFile,
    goal: Annotated[str, Field(description="What should get better, or a metric")],
    ctx: Context,
    base_model: Annotated[str | None, Field(description="Null: one is proposed")] = None,
    backend: BackendName = "embedded",
    base_url: str | None = None,
    budget_usd: Annotated[float | None, Field(gt=0, description="Dollars at most")] = None,
    wanted_effect: Annotated[float | None, Field(gt=0, lt=0.5, description="Points of win rate that matter")] = None,
    max_answer_tokens: Annotated[int | None, Field(gt=0, description="Such as for latency")] = None,
    val_file: str | None = None,
    test_set: str | None = None,
    columns: ColumnsArgument = None,
    output_dir: Annotated[str | None, Field(description="Default: beside the data")] = None,
) -> Annotated[CallToolResult, PlanAnswer]:
    """Plan an experiment from data and a goal: method, model, settings, evaluation, runs, cost, each with its reason.

    Writes a folder with the split data, plan.yaml and configs for start_sft, start_dpo or start_grpo and
    run_judge_eval. Use it first when nothing is decided: the user has a spreadsheet export, chats or rated answers,
    wants a model that answers like them, and asks where to start, what you would do with a budget, or whether SFT, DPO
    or RL. It trains nothing. Not for one question about the data (check_dataset) or the rank (validate_capacity).
    """
    if not goal.strip() or len(goal) > _LONGEST_GOAL:
        raise ConfigError(f"a goal has 1 to {_LONGEST_GOAL} characters, this one {len(goal):,}", where="goal")
    if (backend == "cluster") != (base_url is not None):
        raise ConfigError("backend cluster needs base_url, and no other takes one", where="base_url")
    from ..training.proposal import Wish

    names = {"train_file": train_file, "val_file": val_file or None, "test_set": test_set or None}
    sources, fetching = await data_sources(ctx, **names)
    if sources is None:
        return answer(PlanAnswer(done=False, next=CALL_AGAIN), f"Still {fetching.message}. {CALL_AGAIN}")
    train = sources["train_file"]
    folder = user_path(output_dir).absolute() if output_dir else _folder(train_file, train)
    wish = Wish(
        train_file=train.path,
        goal=goal,
        base_model=base_model,
        backend=backend,
        base_url=base_url,
        budget_usd=budget_usd,
        wanted_effect=wanted_effect,
        max_answer_tokens=max_answer_tokens,
        val_file=sources["val_file"].path if val_file else None,
        test_set=sources["test_set"].path if test_set else None,
        columns=columns,
        folder=folder,
    )

    def work(report: WorkProgress) -> tuple[ExperimentPlan, list[Path]]:
        report.message = "reading the data"
        return _written(wish)

    files = (wish.train_file, wish.val_file, wish.test_set)
    key = ("plan", repr(wish), *map(file_identity, files), file_identity(folder / "plan.yaml"))
    made, progress = await run_in_background(key, work, ctx)
    if made is None:
        return answer(PlanAnswer(done=False, next=CALL_AGAIN), f"Still {progress.message}. {CALL_AGAIN}")
    forget(key)  # an equal call later must see which files are there
    return _answer(*made, folder)


def _written(wish: Wish) -> tuple[ExperimentPlan, list[Path]]:
    from ..training.proposal import propose
    from ..training.proposal_files import write_proposal

    proposal = propose(wish)
    return proposal.plan, write_proposal(proposal, wish.folder)


def _folder(name: str, train: DataSource) -> Path:
    """Where a plan goes that was given no place: beside the data, and for packaged data and the hub's in our state."""
    is_ours = name.startswith("demo:") or train.reference is not None
    parent = state_folder("plans") if is_ours else train.path.parent
    return parent / f"{train.path.stem.partition('.')[0].replace('*', '')}-plan"


def _answer(plan: ExperimentPlan, files: list[Path], folder: Path) -> CallToolResult:
    smoke = next(rung for rung in plan.ladder if rung.rung == "smoke")
    tool = f"start_{plan.method}"
    following = (
        f"show the user plan.yaml; if they agree, {tool}(config='{folder / smoke.config}', overrides={smoke.runs[0]})"
    )
    content = PlanAnswer(
        done=True, files=[str(file) for file in files], plan=plan.model_dump(mode="json"), next=following
    )
    return answer(content, _text(plan, folder, following))


def _text(plan: ExperimentPlan, folder: Path, following: str) -> str:
    settings = {name: each for name, each in plan.settings.items() if name not in {"train_file", "val_file"}}
    cost = f"${number(plan.cost_usd)}" if plan.cost_usd is not None else "unknown"
    effect = plan.smallest_difference
    lines = [
        f"Plan: {plan.method}, because {plan.method_why}.",
        "; ".join(f"{name} {each.value} ({each.rule or each.why})" for name, each in settings.items()) + ".",
        f"Decides: {plan.primary_metric}, then a win rate of {0.5 + effect.points:.0%} on {effect.prompts_there} test "
        f"prompts ({effect.prompts_needed} are needed to show it).",
        "Ladder: " + ", ".join(f"{r.rung} {len(r.runs)} x {r.steps:,} steps" for r in plan.ladder) + f". Cost {cost}: "
        f"{plan.cost_note}.",
        *(f"Data: {note}" for note in plan.data[:2]),
        *(f"Not known: {each}" for each in plan.unknown[:3]),
        *(f"Instead: {each.take}, if {each.when}" for each in plan.alternatives),
        f"Files: {folder}",
    ]
    return "\n".join([*lines, f"Next: {following}"])
