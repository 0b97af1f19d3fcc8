"""Judging with a base model or checkpoint on a Tinker backend, the embedded engine among them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tinker

from ..backends.connection import Backend, backend_errors
from ..backends.sampling_client import Sampler, base_model_of, open_sampler, renderer_of
from ..core.errors import BackendError
from ..models.model_ref import resolve_model
from ..models.renderers import load_renderer
from .base import Judge, JudgeCallError, JudgeUsage, Repair, Reply, conversation_with
from .judge_catalog import JudgeRef
from .prompt import Question, with_json_rule
from .verdicts import UnreadableVerdictError, last_json_object


class TinkerJudge(Judge):
    """One model on a Tinker backend as a judge. It has no tools: its answer ends with a JSON object."""

    def __init__(self, ref: JudgeRef, schema: Mapping[str, Any], backend: Backend, *, max_tokens: int) -> None:
        """Look up the base model of a checkpoint, and its chat format.

        Args:
            ref: Which model or checkpoint.
            schema: JSON schema of its verdicts.
            backend: Where it is.
            max_tokens: Tokens it may write for one verdict, reasoning included.

        Raises:
            ResearcherError: If there is no such model, or the backend does not answer.
        """
        self._schema = dict(schema)
        self._backend = backend
        self._max_tokens = max_tokens
        is_checkpoint = ref.model.startswith("tinker://")
        base = base_model_of(backend, ref.model) if is_checkpoint else ref.model
        self._wire_name = ref.model if is_checkpoint else resolve_model(ref.model).wire_name
        # A checkpoint is asked in the chat format that it was trained with.
        self._renderer = load_renderer(base, renderer_of(backend, ref.model) if is_checkpoint else None)
        self._sampler: Sampler | None = None
        super().__init__(ref, max_tokens=max_tokens, temperature=0.0)
        self.settings = {**self.settings, "model": self._wire_name}

    async def check(self) -> None:
        """Open a session for the weights.

        Raises:
            BackendError: If the backend refuses.
        """
        with backend_errors(self._backend):
            self._sampler = await open_sampler(self._backend, self._wire_name)

    async def ask(self, key: str, question: Question, repair: Repair | None) -> Reply:
        """Ask one question (see `Judge.ask`)."""
        assert self._sampler is not None, "check opens it"
        system = with_json_rule(question.system, self._schema)
        prompt = self._renderer.generation_prompt(conversation_with(f"{system}\n\n{question.user}", repair))
        params = tinker.SamplingParams(
            max_tokens=self._max_tokens, temperature=0.0, top_p=1.0, seed=0, stop=self._renderer.stop
        )
        try:
            with backend_errors(self._backend):
                (sequence,) = await self._sampler.sample(tinker.ModelInput.from_ints(prompt), 1, params)
        except BackendError as error:
            # The backend answers and refuses this one question, for example because it exceeds the model's context.
            if isinstance(error.__cause__, tinker.RequestFailedError):
                raise JudgeCallError(_cause(error.__cause__), transient=False) from error
            raise
        text = self._renderer.decode(sequence.tokens)
        try:
            arguments = last_json_object(text)
        except UnreadableVerdictError:
            arguments = None
        usage = JudgeUsage(len(prompt), len(sequence.tokens))
        return Reply(arguments, text, str(sequence.stop_reason), self._wire_name, usage)

    async def close(self) -> None:
        """Release the session."""
        self._sampler = None


def _cause(error: Exception) -> str:
    """The backend's reason without the SDK's wrapping."""
    return str(error).removeprefix("Request failed: ").split(" for self.request_id")[0][:200]
