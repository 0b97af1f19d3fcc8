"""What a plan says in words: hypothesis, stop rule, reasons, what is not known."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..backends.estimate import CHARS_PER_TOKEN
from ..core.foreign_text import foreign
from ..data.holdout import Holdout
from ..doctrine.rules import integer, rule
from ..evals.statistics.power import WORST_DEVIATION, minimal_detectable_effect
from ..jobs.experiment_plan import SmallestDifference
from .file_shape import FileShape
from .ladder import Sized
from .method_choice import Choice

if TYPE_CHECKING:
    from .proposal import Wish

_NAMES = {"sft": "SFT", "dpo": "DPO", "grpo": "GRPO"}


def by_rule(rule_id: str | None) -> dict[str, Any]:
    """A decision's rule and source."""
    if rule_id is None:
        return {"rule": None, "source": None}
    source = rule(rule_id).source
    section = f", {source.section}" if source.section else ""
    return {"rule": rule_id, "source": f"{source.authors} {source.year}, {source.title}{section}"}


def hypothesis(choice: Choice, model: str, split: Holdout, difference: SmallestDifference) -> str:
    """What the experiment is to show, and what refutes it."""
    wins = 0.5 + difference.points
    return (
        f"{_NAMES[choice.kind]} on {split.train:,} rows lets {model[-120:]} win {wins:.0%} or more of "
        f"{difference.prompts_there:,} held-out prompts against its untuned self. Refuted if the interval of the win "
        f"rate ends below {wins:.0%}; open if it holds both {wins:.0%} and 50%."
    )


def stop_rule(metric: str, effect: float, money: str) -> str:
    """When to stop, with a number for success, failure and money."""
    return (
        f"Success: win rate {0.5 + effect:.0%}, its interval above 50%. Failure: {metric} worse at three validations "
        f"in a row, or no rate of the small rung beats the noise. {money}"
    ).strip()


def why_effect(wish: Wish) -> str:
    """Where the smallest difference comes from."""
    if wish.wanted_effect is not None:
        return "as asked"
    return "assumed, since none was named: rule judge.samples counts prompts for it. It is the user's to say"


def why_rows(split: Holdout) -> str:
    """What the training file holds."""
    return f"{split.train:,} rows: the data without what is held out and what cannot be used"


def why_held_out(wish: Wish, split: Holdout) -> str:
    """Where the held-out rows come from."""
    made = [name for name, given in (("validation", wish.val_file), ("test", wish.test_set)) if given is None]
    if not made:
        return "as given"
    counts = {"validation": split.val, "test": split.test}
    parts = " and ".join(f"{counts[name]:,} {name} prompts" for name in made)
    return f"{parts} set aside by prompt, seed 0; rows that share a customer want a split by customer (data.validation)"


def unknowns(
    wish: Wish, shape: FileShape, choice: Choice, sized: Sized, difference: SmallestDifference
) -> Iterator[str]:
    """What is not known, each with what to measure or say."""
    yield "what the untuned model does with a good prompt (method.prompt_first): run evaluation.yaml as it is"
    if wish.base_model is None:
        yield "the model: none was named; list_models shows those there are, and the same call with base_model plans it"
    if sized.problem is not None:
        yield f"tokens, capacity and cost: {foreign(sized.problem)} Measure by start_{choice.kind} with validate_only"
    elif sized.cost_usd is None:
        yield f"the cost: {sized.cost_note}"
    if choice.kind == "grpo":
        yield (
            "the share of tasks that the untuned model solves sometimes (rl.constant_groups): check_dataset with "
            "reward_config experiment.yaml and base_model samples it"
        )
    if wish.wanted_effect is None:
        yield f"the smallest difference that matters: {difference.points:g} is assumed; wanted_effect says yours"
    if difference.prompts_there < difference.prompts_needed and difference.detectable_points is not None:
        yield (
            f"a difference of {difference.points:g} takes {difference.prompts_needed} test prompts and "
            f"{difference.prompts_there} are judged, which show {difference.detectable_points:g} (stats.power)"
        )
    if shape.check is None:
        seen = minimal_detectable_effect(difference.prompts_needed, WORST_DEVIATION)
        yield (
            f"how a service's judge would rule: the assistant judges {difference.prompts_there} prompts without a key; "
            f"judge_model claude-... or openai:MODEL can take {difference.prompts_needed} and show {seen:.2g}; "
            "the evaluation's plan says what that costs"
        )


def data_notes(wish: Wish, shape: FileShape, split: Holdout, sized: Sized) -> Iterator[str]:
    """What was found in the data."""
    yield (
        f"{shape.rows:,} usable rows, {shape.prompts:,} different prompts: {split.train:,} to train, {split.val:,} to "
        f"validate, {split.test:,} to test"
    )
    if shape.proposed:
        yield f"the columns were not ours and nobody named them; read as {foreign(shape.proposed, 1000)}: confirm"
    if shape.unusable:
        yield f"{shape.unusable:,} rows cannot be used and are left out, the first: {foreign(shape.problem or '')}"
    if shape.prompts < shape.rows:
        yield f"{shape.rows - shape.prompts:,} rows repeat a prompt (data.duplicates)"
    if split.repeated:
        yield f"{split.repeated:,} test rows repeat a test prompt and are left out"
    few = integer("data.min_rows")
    if split.train < few:
        yield f"below {few} rows examples in the prompt are usually the better first try (data.min_rows)"
    tokens = shape.answer_chars / CHARS_PER_TOKEN
    if wish.max_answer_tokens is not None and tokens > wish.max_answer_tokens:
        yield (
            f"a median answer has about {tokens:.0f} tokens, more than the {wish.max_answer_tokens} wanted: what is "
            "learned is longer than what is wanted; shorten the answers first"
        )
    yield from sized.warnings
