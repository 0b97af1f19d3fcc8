"""What a supervised run learned, in bits per trained parameter: excess description length (topic ``capacity``).

EDL = (sum over the first pass of each step's loss x its tokens - tokens x final held-out loss) / ln 2, losses in nats
per token (Donoway 2026 and 2026b; rule ``lora.capacity.edl``). The logged loss of a step is measured before its update,
so the sum is what it costs to send the answers to somebody who trains along.
"""
# pyright: basic
# reason: numpy arithmetic

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from ..core.errors import DataError, ResearcherError
from ..models.capacity import trained_parameters
from ..models.configs import load_model_config
from ..models.model_ref import resolve_model
from .failures import failures_of
from .findings import noise_factor, numbers
from .metric_names import ALIASES
from .runs import TRAINER_STATE, Run
from .series import Series, noise_of

RULE = "lora.capacity.edl"
# Fewer steps show no course of learning.
_LEAST_STEPS = 10
# The last validation may be this share of the pass away from its end.
_NEAR = 0.1
# Steps of the pass whose loss or tokens may be missing, as a share.
_MISSING = 0.02
# What a format costs to learn falls into this share of the pass, at its beginning.
_EARLY = 0.1


@dataclass(frozen=True, slots=True)
class DescriptionLength:
    """The excess description length of a run, and what it rests on.

    Attributes:
        bits: EDL; below zero where the held-out rows cost more than the trained ones did.
        error: Its standard error in bits, from the noise of the steps alone: that of the held-out loss is not logged.
        tokens: Tokens that were coded.
        counted: What those tokens are: with loss, or all of them.
        by_row: Whether the logged losses count each row alike, as ours did before they were logged by token too.
        steps: Steps of the first pass.
        passes: Whether the log shows more than one pass.
        first_pass: Mean loss of the first pass, nats per token.
        held_out: The held-out loss at its end, nats per token.
        held_out_step: The step of that validation.
        early: The share of the bits from the first tenth of the pass; None where there are no bits to share.
        parameters: Trained parameters; None where model or rank are not known.
        continued: Whether the run went on from a checkpoint: what that had learned is not counted.
    """

    bits: float
    error: float
    tokens: int
    counted: str
    by_row: bool
    steps: int
    passes: bool
    first_pass: float
    held_out: float
    held_out_step: int
    early: float | None
    parameters: int | None
    continued: bool

    @property
    def per_parameter(self) -> float | None:
        """Bits per trained parameter; None where their number is not known."""
        return self.bits / self.parameters if self.parameters else None

    @property
    def is_told(self) -> bool:
        """Whether the bits are above zero by more than the noise of the steps."""
        return self.bits > noise_factor() * self.error

    @property
    def reading(self) -> str:
        """What the number says: taught, elicited, or nothing."""
        if not self.is_told:
            below = "the held-out loss is above the first pass's: overfitting, or rows of another kind"
            return below if self.bits < 0 else "within the noise of the steps: what was learned is too little to tell"
        ratio = self.per_parameter
        if ratio is None:
            return "model or rank are not known here, so it cannot be set against the parameters"
        return reading_of(ratio)

    @property
    def text(self) -> str:
        """Everything in a few sentences, for people."""
        per = f", {self.per_parameter:.2g} bits per trained parameter ({self.parameters:,})" if self.parameters else ""
        first = "the first of several passes" if self.passes else "one pass"
        early = f" {self.early:.0%} of it came in the first tenth, as a format does." if self.early is not None else ""
        counted = "" if self.counted == _WITH_LOSS else f" Tokens are {self.counted}, so this is too much."
        rows = " Its losses count each row alike: where rows differ much in length, this is off." if self.by_row else ""
        start = " It counts from the checkpoint that the run began at." if self.continued else ""
        return (
            f"Learned: {self.bits:,.0f} bits (± {self.error:,.0f}){per}: {self.reading} ({RULE}). It rests on {first}, "
            f"{self.steps} steps with {self.tokens:,} tokens at {self.first_pass:.3g} nats, and a held-out loss of "
            f"{self.held_out:.3g} at step {self.held_out_step}.{early}{counted}{rows}{start}"
        )


_BY_ROW = "train_mean_nll"
_WITH_LOSS, _ALL = "with loss", "all of them, prompts included"


def reading_of(per_parameter: float) -> str:
    """Bits per trained parameter against what LoRA was seen to take up when it was taught and when it was elicited."""
    limits = numbers(RULE)
    if per_parameter < limits["elicit_least"]:
        return "far below what LoRA takes up, so the rank is no limit; more likely elicited than taught"
    if per_parameter <= limits["elicit_most"]:
        return "as much as eliciting a skill takes; compare one higher rank"
    if per_parameter < limits["teach"]:
        return "more than eliciting takes: the skill is taught, and a higher rank may pay"
    return "the most that LoRA took up when it was taught: take a higher rank or full fine-tuning"


def description_length(run: Run) -> DescriptionLength | str:
    """The excess description length of an SFT run; or why its log cannot tell, in half a sentence."""
    if problem := _unfit(run):
        return problem
    loss, held_out = run.get("token_loss", least=_LEAST_STEPS), run.get("val_token_loss")
    by_row = False
    if loss is None or held_out is None:
        loss, held_out = run.get("train_loss", least=_LEAST_STEPS), run.get("val_loss")
        by_row = loss is not None and loss.name == _BY_ROW
    tokens = run.get("loss_tokens") or run.get("tokens")
    counted = _WITH_LOSS if tokens is not None and tokens.name in ALIASES["loss_tokens"] else _ALL
    missing = {
        f"training loss of {_LEAST_STEPS} steps": loss,
        "held-out loss": held_out,
        "number of tokens per step": tokens,
    }
    if absent := [name for name, series in missing.items() if series is None]:
        return f"there is no {', and no '.join(absent)}"
    assert loss is not None and held_out is not None and tokens is not None
    end = _end_of_first_pass(run, loss)
    if end is None:
        return "it does not say where the first pass over the data ends"
    inside = loss.steps <= end
    steps, at, with_tokens = np.intersect1d(loss.steps[inside], tokens.steps, return_indices=True)
    if problem := _incomplete(run, loss, steps, int(end)):
        return problem
    if not np.all(tokens.values[with_tokens] > 0):
        return "some steps have no tokens"
    measured = int(np.argmin(np.abs(held_out.steps - (end + 1))))
    if abs(int(held_out.steps[measured]) - int(end)) > max(1, _NEAR * (end - loss.steps[0] + 1)):
        return f"no validation lies near step {end}, where the first pass ends"
    floor, counts = float(held_out.values[measured]), tokens.values[with_tokens]
    losses = loss.values[inside][at]
    excess = counts * (losses - floor) / math.log(2)
    bits, error = float(excess.sum()), float(counts.sum()) * noise_of(losses) / len(losses) ** 0.5 / math.log(2)
    early = float(excess[: max(1, round(_EARLY * len(excess)))].sum())
    return DescriptionLength(
        bits=bits,
        error=error,
        first_pass=float(np.average(losses, weights=counts)),
        early=early / bits if bits > noise_factor() * error else None,
        tokens=round(float(counts.sum())),
        counted=counted,
        by_row=by_row,
        steps=int(end) - int(steps[0]) + int(np.median(np.diff(steps))),
        passes=bool(loss.steps[-1] > end),
        held_out=floor,
        held_out_step=int(held_out.steps[measured]),
        parameters=_parameters(run),
        continued=bool(run.config.get("load_checkpoint")),
    )


def bits_per_token(run: Run) -> float:
    """What a run learned from each token with loss, in bits.

    Raises:
        DataError: If its log cannot tell.
    """
    learned = description_length(run)
    if isinstance(learned, str):
        problem = learned
    elif learned.counted != _WITH_LOSS:
        problem = "its log counts all tokens, and not those with loss"
    elif not learned.is_told:
        problem = learned.reading
    else:
        return learned.bits / learned.tokens
    raise DataError(
        f"what this run learned cannot be told: {problem}",
        where=run.name,
        fix="A pilot is an SFT run of one pass with val_file, such as start_sft makes; or leave pilot out",
    )


def learned_text(run: Run) -> str:
    """What a run learned in bits, or why its log cannot tell, in whole sentences."""
    learned = description_length(run)
    return f"How much it learned cannot be told: {learned}." if isinstance(learned, str) else learned.text


def _unfit(run: Run) -> str:
    """Why no log of such a run could tell, or empty."""
    if run.kind != "sft":
        return "only supervised runs have one: elsewhere the answers come from the model"
    if run.mixed:
        return "several runs are in the log"
    if failed := next((failure for failure in failures_of(run) if failure.lasting), None):
        return f"the run failed at step {failed.step}"
    sources = run.config.get("train_file")
    if isinstance(sources, list) and any(_repeats(source) for source in cast("list[object]", sources)):
        return "a pass over its mixture may have rows of a source several times"
    return ""


def _repeats(source: object) -> bool:
    """Whether a source of a mixture may give a row more than once in a pass."""
    amounts = cast("dict[str, Any]", source) if isinstance(source, dict) else {}
    return amounts.get("rows") is not None or (amounts.get("epochs") or 0) > 1


def _end_of_first_pass(run: Run, loss: Series) -> int | None:
    """The last step of the first pass, or None where the log does not say."""
    epoch = run.get("epoch")
    if epoch is not None:
        fractions = bool(np.any(epoch.values % 1))
        # A count of passes done, 0.5 after half of one; or the number of the pass a step belongs to.
        first = epoch.values <= 1.0 + 1e-9 if fractions else epoch.values == epoch.values.min()
        inside = epoch.steps[first]
        return int(inside[-1]) if len(inside) else None
    passes = run.config.get("num_epochs", run.config.get("num_train_epochs"))
    return int(loss.steps[-1]) if passes == 1 else None


def _incomplete(run: Run, loss: Series, steps: np.ndarray, end: int) -> str:
    """Why the steps with loss and tokens are not the whole first pass, or empty."""
    if len(steps) < _LEAST_STEPS:
        return f"only {len(steps)} steps of the first pass have both loss and tokens"
    gap = int(np.median(np.diff(steps)))
    if steps[0] > max(1, gap):
        return f"it begins at step {int(steps[0])}, after the start of the first pass"
    if run.file.name == TRAINER_STATE:
        return ""  # its losses are means, and its tokens sums, over the steps since the last record
    if gap > 1:
        return f"the loss is logged every {gap} steps only"
    whole = end - int(loss.steps[0]) + 1
    if whole - len(steps) > _MISSING * whole:
        return f"{whole - len(steps)} of the {whole} steps of the first pass have no loss or no tokens"
    return ""


def _parameters(run: Run) -> int | None:
    rank, model, parts = (run.config.get(key) for key in ("lora_rank", "base_model", "apply_to"))
    if not isinstance(rank, int) or not isinstance(model, str):
        return None
    try:
        config = load_model_config(resolve_model(model))
        return trained_parameters(config, rank, backend=str(run.config.get("backend")), apply_to=parts)
    except (ResearcherError, ValueError, TypeError):
        return None
