"""The arms of an evaluation: base models, checkpoints, or files of ready answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..backends.connection import Connect
from ..core.errors import ConfigError
from ..judges.prompt import EvalItem
from ..models.model_ref import resolve_model
from .judge_config import JudgeEvalConfig
from .responses import Response, open_model, read_responses, sample_responses

FILE_ENDINGS = (".jsonl", ".json", ".csv", ".parquet")


@dataclass(frozen=True, slots=True)
class Arm:
    """One side of an evaluation.

    Attributes:
        name: ``baseline``, ``tuned``, ``other-1``.
        model: What the user (or the tool, for a job id) wrote; results show it.
        file: The file of its answers, if they are ready.
    """

    name: str
    model: str
    file: Path | None

    def answers(
        self,
        config: JudgeEvalConfig,
        items: Sequence[EvalItem],
        *,
        connect: Connect,
        seed: int,
        on_done: Callable[[int], bool],
    ) -> list[Response] | None:
        """Its answer to each prompt, read or sampled; None when told to stop.

        Raises:
            ResearcherError: If the file does not fit the prompts, or the backend refuses.
        """
        if self.file is not None:
            return read_responses(self.file, items)
        opened = open_model(
            self.model,
            connect(config.backend, config.base_url),
            base_url=config.base_url,
            renderer=config.renderer,
            max_tokens=config.max_response_tokens,
            temperature=config.temperature,
            seed=seed,
        )
        return sample_responses(opened, items, on_done=on_done)


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
