import base64
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from analysis_synthetic import FAULTS, faulty
from mcp_types import CallToolResult, ImageContent, TextContent
from tool_calls import result_of

from sota_ml_researcher.analysis.diagnosis import diagnose
from sota_ml_researcher.analysis.report import as_html, as_markdown, make_report
from sota_ml_researcher.analysis.runs import load_run
from sota_ml_researcher.core.paths import home
from sota_ml_researcher.core.settings import render_config
from sota_ml_researcher.jobs.registry import Registry
from sota_ml_researcher.training.dpo.config import load_dpo_settings
from sota_ml_researcher.training.sft.config import load_sft_settings

PNG = b"\x89PNG\r\n\x1a\n"


def parts(result: CallToolResult) -> tuple[str, bytes]:
    text, image = result.content
    assert isinstance(text, TextContent) and isinstance(image, ImageContent)
    assert image.mime_type == "image/png"
    return text.text, base64.b64decode(image.data)


def test_a_folder_is_analysed_into_a_short_answer_a_picture_and_a_report(tmp_path: Path) -> None:
    folder = faulty("overfitting", 4).write(tmp_path / "mine")
    before = sorted(p.name for p in folder.iterdir())
    result = result_of("analyze_run", run=str(folder))
    text, png = parts(result)
    assert not result.is_error and len(text) <= 1500
    assert png.startswith(PNG)
    assert re.search(r"Overfitting: the held-out loss is lowest (at|around) step", text)
    content = result.structured_content or {}
    assert [f["kind"] for f in content["findings"]] == ["overfitting"]
    assert content["next"] == content["findings"][0]["next_experiment"]
    assert Path(content["report"]).is_relative_to(home() / "analyses")
    assert sorted(p.name for p in folder.iterdir()) == before, "a foreign folder is never written to"


@pytest.mark.parametrize("name", sorted(FAULTS)[::6])
def test_answers_stay_short_and_end_with_the_next_step(name: str, tmp_path: Path) -> None:
    result = result_of(
        "analyze_run", run=str(faulty(name, 2).write(tmp_path / "a-rather-long-name-of-a-folder" / ("x" * 80)))
    )
    text, _ = parts(result)
    assert len(text) <= 1500
    assert re.search(r"\nNext: .{20,}$", text)


def own_job(**config: Any) -> Path:
    settings = load_sft_settings(None, {"base_model": "demo", "train_file": "demo:sft_train", **config})
    registry = Registry()
    job = registry.create(kind="sft", name="mine", backend="embedded", base_model="demo", runs=home() / "runs")
    run = faulty("plateau", 2)
    run.style = "jsonl"
    run.config.clear()
    run.write(job.folder)
    (job.folder / "config.yaml").write_text(render_config(settings.config, settings.origins))
    return job.folder


def test_our_own_run_gets_its_report_with_settings_origins_and_how_to_repeat_it() -> None:
    folder = own_job(lora_rank=8)
    facts = {
        "data": {"/t.jsonl": {"sha256": "ab" * 32, "bytes": 12345}},
        "python": "3.12.1",
        "packages": {"torch": "2"},
    }
    (folder / "environment.json").write_text(json.dumps(facts))
    (folder / "result.json").write_text(json.dumps({"cost_usd": 1.25, "wall_s": 60.0}))
    content = result_of("analyze_run", run=folder.name).structured_content or {}
    assert content["report"] == str(folder / "report.html")
    html, markdown = (folder / "report.html").read_text(), (folder / "analysis.md").read_text()
    assert (folder / "plots" / "run.png").read_bytes().startswith(PNG)
    assert 'src="data:image/png;base64,' in html and "http://" not in html
    for part in ("lora_rank", "override", "default (lora.apply_to.all)", "12,345 bytes", "ab" * 32, "$1.25", "3.12.1"):
        assert part in html and part in markdown, part
    assert f"start_sft(config='{folder / 'config.yaml'}')" in markdown


def test_a_plan_made_before_the_run_is_answered() -> None:
    folder = own_job(hypothesis="it learns", primary_metric="train_mean_nll", stop_rule="after 2 epochs")
    result_of("analyze_run", run=folder.name)
    markdown = (folder / "analysis.md").read_text()
    assert re.search(
        r"\*\*Hypothesis: it learns\*\*\n\ntrain_mean_nll: [\d.]+ to [\d.]+, improved \(noise floor", markdown
    )
    assert "**Stop rule: after 2 epochs**" in markdown


def test_a_primary_metric_that_was_not_logged_is_said() -> None:
    folder = own_job(hypothesis="it learns", primary_metric="test/nll")
    result_of("analyze_run", run=folder.name)
    assert "test/nll was not logged, so the run cannot answer" in (folder / "analysis.md").read_text()


def test_the_report_says_on_which_rung_of_its_plan_a_run_is_and_what_comes_next(tmp_path: Path) -> None:
    plan = {"train_file": "demo:sft_train", "goal": "reverse words", "output_dir": str(tmp_path)}
    assert not result_of("propose_plan", **plan, base_model="demo").is_error

    def said(**config: Any) -> str:
        folder = own_job(plan_file=str(tmp_path / "plan.yaml"), **config)
        result_of("analyze_run", run=folder.name)
        return (folder / "analysis.md").read_text()

    decided = yaml.safe_load((tmp_path / "plan.yaml").read_text())["settings"]
    full = {"num_steps": decided["num_steps"]["value"], "learning_rate": decided["learning_rate"]["value"]}
    assert "**Plan: reverse words**\n\nRung smoke, which decides: " in said(**full | {"num_steps": 20})
    assert "Next is evaluation.yaml with this job as finetuned_model" in said(**full, seed=1)
    assert "on no rung of its ladder" in said(**full, seed=9)
    (tmp_path / "plan.yaml").unlink()
    assert "It cannot be read any more" in said(**full)


def test_dpo_jobs_take_a_plan_too() -> None:
    given = {"base_model": "demo", "train_file": "demo:x", "hypothesis": "h", "primary_metric": "test/accuracy"}
    assert load_dpo_settings(None, given).config.primary_metric == "test/accuracy"


def test_everything_in_the_page_is_escaped(tmp_path: Path) -> None:
    run = faulty("overfitting", 4)
    run.config["hypothesis"] = "<script>alert(1)</script>"
    found = diagnose(load_run(str(run.write(tmp_path / "<b>run"))))
    report = make_report(found, PNG)
    assert "<script>" not in as_html(report) and "<b>run" not in as_html(report)
    assert "&lt;script&gt;" in as_html(report)
    assert "<script>alert(1)</script>" in as_markdown(report)


def test_answers_before_and_after_come_from_the_judge_evaluation_of_the_job() -> None:
    folder = own_job()
    job = Registry().create(kind="judge_eval", name="e", backend="embedded", base_model="demo", runs=home() / "runs")
    best = "tinker://x/sampler_weights/best"
    record = {"name": "best", "step": 3, "best_state_path": "tinker://x/weights/best", "sampler_path": best}
    (folder / "checkpoints.jsonl").write_text(json.dumps(record) + "\n")
    (job.folder / "config.yaml").write_text(yaml.safe_dump({"finetuned_model": best}))
    item = {"id": "1", "messages": [{"role": "user", "content": "reverse uh"}]}
    answers = [{"arm": arm, "id": "1", "text": text} for arm, text in (("baseline", "RU"), ("tuned", "<hu>"))]
    (job.folder / "items.jsonl").write_text(json.dumps(item) + "\n")
    (job.folder / "responses.jsonl").write_text("".join(json.dumps(a) + "\n" for a in answers))
    result_of("analyze_run", run=folder.name)
    html = (folder / "report.html").read_text()
    assert "reverse uh" in html and "<pre>RU</pre>" in html and "&lt;hu&gt;" in html


def test_runs_are_compared_through_the_tool(tmp_path: Path) -> None:
    folders = [str(faulty("plateau", seed).write(tmp_path / f"run{seed}")) for seed in (2, 3)]
    result = result_of("compare_runs", runs=folders)
    text, png = parts(result)
    assert len(text) <= 1500 and png.startswith(PNG)
    content = result.structured_content or {}
    assert content["metric"] in ("train_mean_nll", "loss")
    assert content["settings"][:100] in text.partition("\n")[0]
    assert Path(content["report"]).exists()


@pytest.mark.parametrize(
    ("tool", "arguments", "message"),
    [
        ("analyze_run", {"run": "sft-ffffff"}, "there is no job 'sft-ffffff'"),
        ("analyze_run", {"run": "/nowhere/x"}, "no such file or folder"),
        ("compare_runs", {"runs": ["/nowhere/x"]}, "at least 2"),
    ],
)
def test_bad_input_is_an_error_with_the_way_out(tool: str, arguments: dict[str, Any], message: str) -> None:
    result = result_of(tool, **arguments)
    assert result.is_error
    text = result.content[0]
    assert isinstance(text, TextContent) and message in text.text and "Traceback" not in text.text


def test_a_run_still_going_is_read_while_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for n in (1, 3, 30):
        rows = [json.dumps({"step": i, "loss": 2 / (1 + i)}) for i in range(n)]
        path.write_text("\n".join(rows) + '\n{"step": ')
        text, _ = parts(result_of("analyze_run", run=str(tmp_path)))
        assert f"line {n + 1} is still being written" in text
