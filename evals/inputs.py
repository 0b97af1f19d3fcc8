"""What an evaluation starts from, loaded and checked: prompts, canaries, arms, and the judges' prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..judges.prompt import EvalItem, Prompter
from ..judges.rubric import load_rubric
from .arms import Arm, resolve_arm
from .controls import Canary, load_canaries
from .judge_config import JudgeEvalConfig
from .questions import count_calls
from .test_set import load_items


@dataclass(frozen=True, slots=True)
class EvalInputs:
    """What plan and job both need to know.

    Attributes:
        items: The prompts.
        canaries: Pairs with a known answer, for the judges' calibration checks.
        arms: The arms by name, the baseline first.
        prompter: Writes the judges' questions.
        calls_per_judge: Questions to each judge, calibration checks included.
        answers_to_sample: Answers that no file holds (the response cache may).
        total_steps: Answers to sample and calls of all judges: the job's length.
    """

    items: Sequence[EvalItem]
    canaries: Sequence[Canary]
    arms: Mapping[str, Arm]
    prompter: Prompter
    calls_per_judge: int
    answers_to_sample: int
    total_steps: int


def load_inputs(config: JudgeEvalConfig) -> EvalInputs:
    """Load what a resolved config names.

    Raises:
        ResearcherError: For a test set, a rubric, canaries or an arm that cannot be used.
    """
    items = load_items(Path(config.test_set), config.num_samples, config.seed)
    prompter = make_prompter(config)
    canaries = load_canaries(config.canaries)
    arms = {name: resolve_arm(name, model) for name, model in config.arms.items()}
    pairwise = config.mode == "pairwise"
    calls = count_calls(len(arms), len(items), len(canaries), pairwise=pairwise, both_orders=config.position_debias)
    to_sample = sum(arm.file is None for arm in arms.values()) * len(items)
    return EvalInputs(items, canaries, arms, prompter, calls, to_sample, to_sample + calls * len(config.judges))


def make_prompter(config: JudgeEvalConfig) -> Prompter:
    """What writes the judges' questions.

    Raises:
        ConfigError: If the rubric cannot be used.
    """
    return Prompter(load_rubric(config.rubric), config.mode, max_chars=config.max_response_chars)
