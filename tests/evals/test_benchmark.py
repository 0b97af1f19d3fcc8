from pathlib import Path
from typing import Any

import anyio
import pytest
from eval_helpers import Context, evaluate, sums, write_lines
from loopback_judges import KEY, MODEL, Judges, serving
from mcp import Client
from mcp_types import CallToolResult, TextContent

from sota_ml_researcher.core.errors import ConfigError, DataError
from sota_ml_researcher.core.settings import render_config
from sota_ml_researcher.evals.benchmark.benchmark_config import load_benchmark_settings
from sota_ml_researcher.evals.benchmark.benchmark_plan import plan_benchmark
from sota_ml_researcher.evals.benchmark.benchmark_results import (
    BenchmarkNumbers,
    ItemScores,
    benchmark_numbers,
    benchmark_text,
)
from sota_ml_researcher.evals.judge_job import JudgeFailedError
from sota_ml_researcher.server.app import build_server
from sota_ml_researcher.templates.catalog import template_path

TASK = """
from inspect_ai import Task, task
from inspect_ai.dataset import Sample
from inspect_ai.scorer import includes

@task
def copy(word: str = "abc"):
    rows = [Sample(input=f"copy {w}", target=w) for w in (word, "xy", "qq")]
    return Task(dataset=rows, scorer=includes())
"""


def numbers(model: list[float | None], baseline: list[float | None], clusters: list[str | None]) -> BenchmarkNumbers:
    names = [str(n) for n in range(len(model))]
    labels = dict(zip(names, clusters, strict=True))
    scores = {
        "model": {"exact": ItemScores(dict(zip(names, model, strict=True)), labels)},
        "baseline": {"exact": ItemScores(dict(zip(names, baseline, strict=True)), labels)},
    }
    return benchmark_numbers(scores, arms={"model": "m", "baseline": "b"}, limit=0.05)


def test_the_difference_is_paired_by_hand() -> None:
    # differences 1, 0, 1, 0 on the scale of -1 to 1: scores 1, 1/2, 1, 1/2 with mean 3/4; smoothed mean 3.5 / 5 = .7,
    # square (2 + .5 + .5) / 5 = .6, variance .11 of .21: effective size 4 x .21 / .11; Wilson .40222 to .93044
    found = numbers([1, 1, 1, 0], [0, 1, 0, 0], [None] * 4).scorers["exact"]
    difference = found.difference
    assert difference is not None and difference.interval is not None
    assert difference.mean == 0.5
    assert (difference.interval.low, difference.interval.high) == pytest.approx((-0.19556, 0.86088), abs=1e-4)
    assert difference.verdict == "not distinguishable"
    assert (difference.wins, difference.ties) == (2, 2)
    assert found.model.interval is not None and found.model.interval.method == "Wilson"


def test_clusters_widen_the_interval_and_all_alike_is_not_certain() -> None:
    alone = numbers([1, 1, 0, 0] * 5, [0] * 20, [None] * 20).scorers["exact"].model
    grouped = numbers([1, 1, 0, 0] * 5, [0] * 20, [str(n // 2) for n in range(20)]).scorers["exact"].model
    assert grouped.units == 10
    assert grouped.standard_error is not None and alone.standard_error is not None
    assert grouped.standard_error > alone.standard_error
    every = numbers([1.0] * 20, [0.0] * 20, [None] * 20).scorers["exact"].difference
    assert every is not None and every.interval is not None
    # Wilson's bound 0.8389 for 20 of 20, the rest taken for lost: 2 x 0.8389 - 1
    assert every.interval.low == pytest.approx(0.6777, abs=1e-3)
    assert every.verdict == "better"


def test_five_wins_of_sixty_are_no_verdict_and_the_text_names_p() -> None:
    found = numbers([1.0] * 5 + [0.0] * 55, [0.0] * 60, [None] * 60)
    difference = found.scorers["exact"].difference
    assert difference is not None and difference.interval is not None
    assert difference.interval.low > 0
    assert difference.sign_test_p_value == pytest.approx(2 / 2**5)
    assert difference.verdict == "not distinguishable"
    text = benchmark_text(found, task="t")
    assert "5 items better, 0 worse, 55 equal; exact sign test p 0.062" in text
    assert "Careful: the interval alone would say better, and the exact sign test does not agree" in text


def test_graded_scores_have_students_interval() -> None:
    # differences .1, .2, .3: mean .2, error .1 / sqrt(3), t(2) = 4.302653
    found = numbers([0.5, 0.6, 0.7], [0.4, 0.4, 0.4], [None] * 3).scorers["exact"].difference
    assert found is not None and found.interval is not None
    assert found.interval.high - 0.2 == pytest.approx(4.302653 * 0.1 / 3**0.5, rel=1e-6)


@pytest.mark.parametrize("answer", ["abc", " abc\n", "ABC", "abc.", "the abc"])
def test_exact_means_what_check_exact_means(answer: str) -> None:
    from inspect_ai.model import ModelName, ModelOutput
    from inspect_ai.scorer import Target
    from inspect_ai.solver import TaskState

    from sota_ml_researcher.evals.benchmark.benchmark_job import exact
    from sota_ml_researcher.judges.local_judges import check_exact

    output = ModelOutput.from_content("m", answer)
    state = TaskState(ModelName("a/m"), sample_id=1, epoch=1, input="?", messages=[], output=output)
    score = anyio.run(exact(), state, Target("abc"))
    assert score is not None
    assert score.value == ("C" if check_exact(answer, "abc") else "I") == ("C" if answer.strip() == "abc" else "I")


def test_unscored_items_are_counted_and_too_many_forbid_a_verdict() -> None:
    found = numbers([1.0] * 18 + [None, None], [0.0] * 20, [None] * 20)
    assert found.scorers["exact"].model.unscored == 2
    difference = found.scorers["exact"].difference
    assert difference is not None and difference.verdict == "no verdict"
    assert "NO VERDICT" in benchmark_text(found, task="t")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"task": "demo:sft_test"}, "data rows need a scorer"),
        ({"task": "task.py", "scorer": "exact"}, "scorer belongs to data rows"),
        ({"task": "demo:sft_test", "scorer": "exact", "task_args": {"n": 1}}, "task_args belong to a task"),
        (
            {"task": "demo:sft_test", "scorer": "exact", "judge_base_url": "http://x"},
            "judge_base_url belongs to",
        ),
        ({"task": "task.py", "judge_price": {"input": 1, "output": 1}}, "judge_price belongs to judge_model"),
        ({"task": "demo:sft_test", "scorer": "model_graded"}, "belong together"),
        ({"task": "demo:sft_test", "scorer": "model_graded", "judge_model": "assistant"}, "needs a model"),
        ({"task": "nowhere.py"}, "no such file: nowhere.py"),
        ({"task": "no_such_package/gsm8k"}, "install the package 'no_such_package'"),
        ({"task": "gsm8k"}, "there is no task 'gsm8k' here"),
        ({"task": "demo:sft_test", "scorer": "exact", "baseline_model": "demo:sft_test_tuned.jsonl"}, "no such"),
        ({"task": "demo:sft_test", "scorer": "exact", "epochs": 0}, "epochs"),
        ({"task": "demo:sft_test", "scorer": "exact", "max_cost_usd": 1}, "no grader with a known price"),
        ({"task": "demo:sft_test", "scorer": "exact", "epoch": 2}, "Did you mean 'epochs'"),
    ],
)
def test_a_benchmark_that_cannot_run_is_an_error_at_once(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_benchmark(load_benchmark_settings(None, {"model": "demo"} | config))


def test_rows_without_a_reference_are_refused(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "t.jsonl", [{"prompt": "a", "answer": "b"}, {"prompt": "c"}])
    config = {"model": "demo", "task": str(path), "scorer": "exact"}
    with pytest.raises(DataError, match=r"t\.jsonl:2: a benchmark compares with a reference"):
        plan_benchmark(load_benchmark_settings(None, config))


def test_a_paid_benchmark_is_planned_first(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "t.jsonl", [{"prompt": "a", "answer": "b"}])
    config = {"model": "demo", "task": str(path), "scorer": "model_graded", "judge_model": "claude-haiku-5-5"}
    plan = plan_benchmark(load_benchmark_settings(None, config))
    assert plan.bills_elsewhere
    assert not plan_benchmark(load_benchmark_settings(None, {**config, "judge_model": "tinker:demo"})).bills_elsewhere


@pytest.mark.slow
@pytest.mark.usefixtures("shared_engine")
def test_a_benchmark_runs_through_the_tool() -> None:
    async def run() -> None:
        async with Client(build_server()) as client:
            task = {"task": "demo:sft_test", "scorer": "exact", "num_samples": 8, "max_response_tokens": 24}
            arguments = {"overrides": {**task, "model": "demo", "baseline_model": "demo", "epochs": 2}}
            shown, job = await finished(client, "run_benchmark", arguments)
            assert job["state"] == "succeeded", job["error"]
            assert "NOT DISTINGUISHABLE" in shown
            assert len(list((Path(job["run_folder"]) / "inspect").rglob("*.json"))) == 2

    anyio.run(run)


async def finished(client: Client, tool: str, arguments: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    started = await client.call_tool(tool, arguments)
    assert not started.is_error, text_of(started)
    assert started.structured_content is not None
    while True:
        found = await client.call_tool(
            "wait_for_job", {"job_id": started.structured_content["job_id"], "timeout_s": 50}
        )
        assert found.structured_content is not None
        if found.structured_content["state"] not in {"queued", "starting", "running"}:
            return text_of(found), found.structured_content


def text_of(result: CallToolResult) -> str:
    assert isinstance(result.content[0], TextContent)
    return result.content[0].text


@pytest.mark.usefixtures("shared_engine")
def test_the_template_runs_as_shipped_and_says_better() -> None:
    async def run() -> None:
        async with Client(build_server()) as client:
            arguments = {"config": str(template_path("eval")), "overrides": {"num_samples": 40}}
            shown, job = await finished(client, "run_judge_eval", arguments)
            assert job["state"] == "succeeded", job["error"]
            assert "BETTER: tuned" in shown and "95% interval 0.9" in shown
            assert len(job["verdict"].encode()) <= 2048

    anyio.run(run)


@pytest.mark.slow
@pytest.mark.usefixtures("shared_engine")
def test_task_files_and_graded_rows_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sota_ml_researcher.evals.benchmark.benchmark_job import run_benchmark_job

    def run(name: str, config: dict[str, Any]) -> dict[str, Any]:
        folder = tmp_path / name
        folder.mkdir()
        plan = plan_benchmark(load_benchmark_settings(None, {"model": "demo", "max_response_tokens": 24} | config))
        (folder / "config.yaml").write_text(render_config(plan.settings.config, plan.settings.origins))
        outcome = run_benchmark_job(Context(folder), folder / "config.yaml")
        found: Any = outcome.summary["numbers"]
        return found["scorers"]

    (tmp_path / "task.py").write_text(TASK)
    scores = run("task", {"task": f"{tmp_path / 'task.py'}@copy", "task_args": {"word": "zz"}})
    assert scores["includes"]["model"]["mean"] == 1.0
    with serving(Judges()) as url:
        graded = {"scorer": "model_graded", "judge_model": "openai:local-judge", "judge_base_url": f"{url}/openai"}
        scores = run("graded", {"task": "demo:sft_test", "num_samples": 3, **graded})
    assert scores["model_graded_qa"]["model"]["mean"] == 1.0
    judges = Judges()
    with serving(judges) as url:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", url)
        monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
        graded = {"scorer": "model_graded", "judge_model": MODEL}
        scores = run("claude", {"task": "demo:sft_test", "num_samples": 3, **graded})
    assert scores["model_graded_qa"]["model"]["mean"] == 1.0
    assert sorted(judges.answered.values()) == [1, 1, 1]
    with pytest.raises(ConfigError, match="Task named 'nothing' not found"):
        run("nothing", {"task": f"{tmp_path / 'task.py'}@nothing"})


@pytest.mark.slow
@pytest.mark.usefixtures("shared_engine")
def test_a_model_too_small_to_judge_fails_loudly_and_says_why(tmp_path: Path) -> None:
    with pytest.raises(JudgeFailedError, match=r"no readable verdict .* do not fit the model's context window of 512"):
        evaluate(tmp_path, sums(tmp_path, 3) | {"judge_model": "tinker:demo", "judge_max_tokens": 64})
