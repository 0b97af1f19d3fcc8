"""The arms of an evaluation: base models, checkpoints, or files of ready answers."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..core.errors import ConfigError
from ..judges.prompt import EvalItem
from ..models.model_ref import resolve_model
from .judge_config import JudgeEvalConfig
from .responses import Response, Sampling, read_responses, sample_responses
from .test_set import read_test_set

FILE_ENDINGS = (".jsonl", ".json", ".csv", ".parquet")


@dataclass(frozen=True, slots=True)
class Arm:
    """One arm.

    Attributes:
        name: ``baseline``, ``tuned``, ``other-1``.
        model: What the user (or the tool, for a job id) wrote: it is shown in results.
        file: Its answers, when they are ready.
    """

    name: str
    model: str
    file: Path | None

    def answers(
        self, config: JudgeEvalConfig, items: Sequence[EvalItem], *, seed: int, on_done: Callable[[int], bool]
    ) -> list[Response] | None:
        """Its answer to each prompt, read or sampled; None when told to stop.

        Raises:
            ResearcherError: If the file does not fit the prompts, or the backend refuses.
        """
        if self.file is not None:
            return read_responses(self.file, items)
        from ..backends.connection import connect
        from ..backends.sampling_client import base_model_of
        from ..models.renderers import load_renderer

        backend = connect(config.backend, config.base_url)
        is_checkpoint = self.model.startswith("tinker://")
        base = base_model_of(backend, self.model) if is_checkpoint else self.model
        renderer = load_renderer(base, config.renderer)
        sampling = Sampling(
            model=self.model if is_checkpoint else resolve_model(base).wire_name,
            backend=config.backend,
            base_url=config.base_url or "",
            renderer=renderer.name,
            fingerprint=fingerprint(base),
            max_tokens=config.max_response_tokens,
            temperature=config.temperature,
            seed=seed,
        )
        return sample_responses(backend, renderer, sampling, items, on_done=on_done)


def resolve_arm(name: str, model: str) -> Arm:
    """The arm that a resolved config names: paths are absolute there, and job ids are tinker:// paths.

    Raises:
        ConfigError: If a file of answers does not exist.
        ModelError: If it names no model.
    """
    if model.lower().endswith(FILE_ENDINGS):
        path = Path(model)
        if not path.is_file():
            raise ConfigError(f"no such file: {model}", where=name, fix="Check the path")
        return Arm(name, model, path)
    if not model.startswith("tinker://"):
        resolve_model(model)
    return Arm(name, model, None)


def sampled_arms(arms: Mapping[str, Arm]) -> list[Arm]:
    """Those arms that have to be sampled."""
    return [arm for arm in arms.values() if arm.file is None]


def load_items(test_set: Path, number: int | None, seed: int) -> list[EvalItem]:
    """The prompts to use: all, or ``number`` of them drawn by the seed, in the file's order.

    Raises:
        DataError: If the test set cannot be used.
    """
    items = read_test_set(test_set)
    if number is None or number >= len(items):
        return items
    chosen = sorted(random.Random(seed).sample(range(len(items)), number))
    return [items[index] for index in chosen]


def fingerprint(base_model: str) -> str:
    """Tells two states of a model folder apart; an id on the hub or a checkpoint's path never changes its content."""
    folder = resolve_model(base_model).path
    if folder is None:
        return ""
    files = sorted(folder.glob("*.safetensors"))
    return ";".join(f"{f.name}:{f.stat().st_size}:{f.stat().st_mtime_ns}" for f in files)


ITEMS = "items.jsonl"
RESPONSES = "responses.jsonl"
CONTROLS = "controls.json"
RUN = "judges.json"
METRICS = "metrics.json"
VERDICT = "verdict.json"
VERDICT_TEXT = "verdict.txt"
REPORT = "report.html"
PLOTS = "plots"
INSPECT_LOG = "inspect_log.json"
