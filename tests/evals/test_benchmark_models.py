"""Tools for the model under test, and the model that grades."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from eval_helpers import Context
from inspect_ai import Task, eval
from inspect_ai.dataset import Sample
from inspect_ai.model import ChatMessageUser, GenerateConfig, Model
from inspect_ai.scorer import includes
from inspect_ai.solver import generate, use_tools
from inspect_ai.tool import Tool, tool
from loopback_judges import KEY, MODEL, Judges

from sota_ml_researcher.backends.connection import Backend
from sota_ml_researcher.core.errors import BackendError, ModelError
from sota_ml_researcher.evals.benchmark.benchmark_config import load_benchmark_settings
from sota_ml_researcher.evals.benchmark.benchmark_plan import plan_benchmark
from sota_ml_researcher.evals.benchmark.grader import grader_of
from sota_ml_researcher.evals.benchmark.inspect_provider import TinkerModelAPI
from sota_ml_researcher.evals.responses import ArmSampling, OpenedModel
from sota_ml_researcher.models.renderers import load_renderer

API: Any = TinkerModelAPI
CALL = '<tool_call>\n{"name": "add", "arguments": {"x": 20, "y": 3}}\n</tool_call><|im_end|>'


@tool
def add() -> Tool:
    async def execute(x: int, y: int) -> int:
        """Add two numbers.

        Args:
            x: One.
            y: The other.
        """
        return x + y

    return execute


class Scripted:
    """Stands for a model large enough to call tools: says what the script makes of the prompt it is shown."""

    def __init__(self, renderer: Any, script: Callable[[str], str]) -> None:
        self._renderer, self._script = renderer, script
        self.prompts: list[str] = []

    async def sample(self, prompt: Any, samples: int, params: Any) -> Any:
        self.prompts.append(self._renderer.text_of(prompt.to_ints()))
        said = self._renderer._tokenizer.encode(self._script(self.prompts[-1]), add_special_tokens=False)
        return [SimpleNamespace(tokens=said, stop_reason="stop")]


def model_saying(
    folder: Path, script: Callable[[str], str], renderer_name: str | None = "qwen3_instruct"
) -> tuple[Model, Scripted]:
    renderer = load_renderer(str(folder), renderer_name)
    sampling = ArmSampling("m", "cluster", "http://x", renderer.name, str(folder), 200, 0.0, 0)
    backend = Backend("cluster", "http://x", "tml-x")
    provider = API(OpenedModel(backend, renderer, sampling), should_stop=lambda: False, on_answer=lambda: None)
    scripted = Scripted(renderer, script)
    provider._opened = scripted
    return Model(provider, GenerateConfig()), scripted


def run(model: Model, folder: Path) -> Any:
    sums = Task(
        dataset=[Sample(input="20 + 3?", target="23")], solver=[use_tools(add()), generate()], scorer=includes()
    )
    options: dict[str, Any] = {"display": "none", "ctl_server": False, "acp_server": False}
    return eval(sums, model=model, log_dir=str(folder), log_format="json", **options)[0]


def test_a_model_calls_tools_and_sees_their_results(tmp_path: Path, tiny_model: Path) -> None:
    def script(prompt: str) -> str:
        return "The sum is 23.<|im_end|>" if "<tool_response>\n23" in prompt else CALL

    model, scripted = model_saying(tiny_model, script)
    log = run(model, tmp_path / "logs")
    assert log.status == "success", log.error
    assert log.results.scores[0].metrics["accuracy"].value == 1.0
    assert '"name": "add"' in scripted.prompts[0] and '"integer"' in scripted.prompts[0]
    assert CALL in scripted.prompts[1]  # its own call, as it wrote it
    again, other = model_saying(tiny_model, script)
    assert run(again, tmp_path / "again").status == "success"
    assert not other.prompts  # both turns were kept


def test_a_call_that_cannot_be_read_comes_back_as_an_error(tmp_path: Path, tiny_model: Path) -> None:
    def script(prompt: str) -> str:
        return "I give up.<|im_end|>" if "<tool_response>" in prompt else "<tool_call>\n{add 2\n</tool_call><|im_end|>"

    model, scripted = model_saying(tiny_model, script)
    log = run(model, tmp_path / "logs")
    assert log.status == "success", log.error
    assert log.samples[0].messages[1].tool_calls[0].parse_error
    assert len(scripted.prompts) == 2
    assert log.results.scores[0].metrics["accuracy"].value == 0.0


@pytest.mark.parametrize(
    ("renderer", "message"),
    [(None, "a chat template does not say how the model's calls are read"), ("role_colon", "has no form for tools")],
)
def test_tools_without_a_form_for_them_are_refused_with_the_way_out(
    tmp_path: Path, tiny_model: Path, renderer: str | None, message: str
) -> None:
    if renderer == "role_colon":
        with pytest.raises(ModelError, match=message):
            load_renderer(str(tiny_model), renderer).tool_prompt([], [{"name": "add"}])  # type: ignore[attr-defined]
        return
    model, _ = model_saying(tiny_model, lambda prompt: "", renderer)
    log = run(model, tmp_path / "logs")
    assert log.status == "error"
    assert message in log.error.message and "cookbook's renderer" in log.error.message


def graded(**changes: Any) -> Any:
    config = {"task": "demo:sft_test", "model": "demo", "scorer": "model_graded", "judge_model": MODEL}
    return load_benchmark_settings(None, config | changes)


def test_what_the_grader_costs_is_counted_and_a_resume_asks_nothing_twice(tmp_path: Path, judges: Judges) -> None:
    before = dict(os.environ)
    context = Context(tmp_path)

    async def grade(numbers: range) -> None:
        with grader_of(context, graded().config) as grader:
            assert grader is not None
            for n in numbers:
                output = await grader.generate([ChatMessageUser(content=f"Is {n} right?")])
                assert "GRADE: C" in output.completion

    asyncio.run(grade(range(3)))
    # 700 tokens in at 0.1 and 90 out at 0.5 dollars a million
    each = (700 * 0.1 + 90 * 0.5) / 1e6
    assert context.judges_usd == pytest.approx(3 * each)
    asyncio.run(grade(range(5)))  # what a resume does: the first three are known
    assert context.judges_usd == pytest.approx(5 * each)
    assert sorted(judges.answered.values()) == [1] * 5
    assert dict(os.environ) == before


def test_a_grader_without_a_price_is_said_and_a_benchmark_without_one_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    settings = graded(judge_model="claude-none-1")
    context = Context(tmp_path)
    with grader_of(context, settings.config):
        pass
    assert ("warn", "no price of claude-none-1 here: what it costs is not counted") in context.alerts
    monkeypatch.delenv("ANTHROPIC_API_KEY")
    with pytest.raises(BackendError, match="a grader of Anthropic needs it"), grader_of(context, settings.config):
        pass
    plain = load_benchmark_settings(None, {"task": "demo:sft_test", "model": "demo", "scorer": "exact"})
    with grader_of(context, plain.config) as grader:
        assert grader is None


def test_the_plan_says_what_the_grader_may_cost() -> None:
    plan = plan_benchmark(graded(num_samples=10, epochs=2, max_response_tokens=200, baseline_model="demo"))
    # 10 items x 2 epochs x 2 models, 800 + 200 tokens in and 400 out
    assert plan.grader_usd == pytest.approx(40 * (1000 * 0.1 + 400 * 0.5) / 1e6)
    assert plan.bills_elsewhere and "prices of 2026" in plan.grader_note
    local = plan_benchmark(graded(judge_model="openai:x", judge_base_url="http://127.0.0.1:9/v1"))
    assert local.grader_usd == 0 and not local.bills_elsewhere
    unknown = plan_benchmark(graded(judge_model="openai:x", judge_base_url="https://example.com/v1"))
    assert unknown.grader_usd is None and "give judge_price" in unknown.grader_note
