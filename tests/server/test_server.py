import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import Client, StdioServerParameters
from mcp.shared.exceptions import MCPError
from mcp_types import CallToolResult, ResourceTemplateReference
from tool_calls import result_of, text_of, with_client

from sota_ml_researcher.jobs.registry import Registry
from sota_ml_researcher.jobs.states import JobState
from sota_ml_researcher.tools import TOOLS
from sota_ml_researcher.tools.answers import MAX_TEXT

SERVE = ["-m", "sota_ml_researcher.server", "serve"]


def test_the_list_of_tools_fits_8000_tokens_and_describes_each() -> None:
    tools = with_client(lambda client: client.list_tools()).tools
    assert [tool.name for tool in tools] == [spec.function.__name__ for spec in TOOLS]
    listed = [t.model_dump(mode="json", exclude_none=True, by_alias=True) for t in tools]
    text = json.dumps(listed, separators=(",", ":"))  # as it goes over the wire
    # The tokenizer that anthropic 0.30 shipped counts 5,747 tokens in 22,681 characters of this list: 3.95 each.
    assert len(text) / 3.9 < 8000
    for tool in tools:
        assert tool.description
        assert tool.output_schema
        assert tool.annotations
        assert tool.annotations.read_only_hint is not None
        assert "title" not in tool.input_schema


@pytest.mark.parametrize(
    ("tool", "arguments", "message"),
    [
        ("check_dataset", {"train_file": "/nowhere.jsonl"}, "no such file"),
        ("check_dataset", {}, "train_file is required and missing"),
        ("check_dataset", {"train_file": "demo:sft_trian"}, "there is no demo data set 'sft_trian'"),
        ("check_dataset", {"train_file": "demo:sft_train", "val_file": "demo:x"}, "val_file: there is no demo data"),
        ("export_checkpoint", {"model": "tinker://abc"}, "'tinker://abc' names no checkpoint"),
        ("check_dataset", {"train_file": "demo:sft_train", "base_model": "demmo"}, "demmo: no such model"),
        ("validate_capacity", {"base_model": "demo"}, "give either train_file or dataset_tokens"),
        ("validate_capacity", {"base_model": "demo", "dataset_tokens": 9, "lora_rank": 0}, "at least 1, got 0"),
        ("validate_capacity", {"base_model": "demo", "dataset_tokens": 9, "apply_to": ["x"]}, "apply_to"),
        ("list_models", {"backend": "gpu"}, "backend"),
        ("start_sft", {}, "base_model: this key is required and missing"),
        ("start_sft", {"config": "/nowhere.yaml"}, "no such file"),
        (
            "start_sft",
            {"overrides": {"base_model": "demo", "train_file": "demo:sft_train", "lora_rnak": 8}},
            "lora_rank",
        ),
        (
            "start_sft",
            {"overrides": {"base_model": "demo", "train_file": "demo:sft_train", "backend": "tinker"}},
            "TINKER_API_KEY is not set",
        ),
        (
            "start_sft",
            {
                "overrides": {
                    "base_model": "Qwen/Qwen3-8B",
                    "train_file": "demo:sft_train",
                    "backend": "tinker",
                    "lora_rank": 48,
                }
            },
            "Tinker takes powers of two only",
        ),
        ("list_jobs", {"limit": 0}, "limit: input should be greater than or equal to 1, got 0"),
        ("list_jobs", {"state": "done"}, "there is no state 'done'"),
        ("get_job", {"job_id": "sft-000000"}, "there is no job 'sft-000000'"),
        ("wait_for_job", {"job_id": "x", "timeout_s": 600}, "timeout_s"),
        ("cancel_job", {"job_id": "x"}, "there is no job 'x'"),
        ("resume_job", {"jobid": "x"}, "there is no argument 'jobid'. Did you mean 'job_id'?"),
        ("sample_model", {"model": "demo"}, "give either prompts or messages"),
        ("sample_model", {"model": "demo", "prompts": [" "]}, "a prompt is empty"),
        ("sample_model", {"model": "sft-000000", "prompts": ["x"]}, "there is no job"),
        ("sample_modle", {"model": "demo"}, "there is no tool 'sample_modle'. Did you mean 'sample_model'?"),
    ],
)
def test_a_wrong_input_comes_back_as_a_sentence(tool: str, arguments: dict[str, Any], message: str) -> None:
    result = result_of(tool, **arguments)
    assert result.is_error
    assert message in text_of(result)
    assert "Traceback" not in text_of(result)
    assert "Error executing tool" not in text_of(result)


def test_checking_the_demo_data_counts_tokens_and_names_the_next_call() -> None:
    result = result_of("check_dataset", train_file="demo:sft_train", base_model="demo", val_file="demo:sft_val")
    content = result.structured_content
    assert content is not None
    assert content["done"]
    assert content["report"]["ok"]
    assert content["report"]["overlap_with_val"] == 0
    assert content["report"]["tokens"]["loss"] > 1000
    assert "Next: validate_capacity" in text_of(result)
    assert len(text_of(result)) <= MAX_TEXT


def test_capacity_of_a_known_model_has_plain_integers() -> None:
    result = result_of(
        "validate_capacity", base_model="meta-llama/Llama-3.1-8B", lora_rank=64, dataset_tokens=10**9, backend="tinker"
    )
    content = result.structured_content
    assert content is not None
    assert content["parameters"] == 64 * (1_769_472 + 851_968 + 132_352)
    assert content["capacity_bits"] == 2 * content["parameters"]
    assert content["verdict"] == "insufficient"
    assert content["smallest_sufficient_rank"] == 512
    assert len(text_of(result)) <= MAX_TEXT


def test_a_plan_starts_nothing() -> None:
    overrides = {"base_model": "demo", "train_file": "demo:sft_train"}
    result = result_of("start_sft", overrides=overrides, validate_only=True)
    assert not result.is_error
    assert result.structured_content is not None
    assert result.structured_content["job_id"] is None
    assert result.structured_content["origins"]["learning_rate"].startswith("derived (lora.lr.exponent.qwen)")
    assert Registry().find() == []


def test_hosted_models_come_from_the_dated_table_without_a_key() -> None:
    result = result_of("list_models", backend="tinker", search="qwen3-8b")
    assert result.structured_content is not None
    assert "the table of 20" in result.structured_content["source"]
    assert {m["name"] for m in result.structured_content["models"]} == {"Qwen/Qwen3-8B", "Qwen/Qwen3-8B-Base"}


def test_doctrine_and_templates_can_be_read_and_completed() -> None:
    async def work(client: Client) -> None:
        page = await client.read_resource("doctrine://lora")
        assert "rank" in page.contents[0].text  # type: ignore[union-attr]
        template = await client.read_resource("template://sft")
        assert "base_model: demo" in template.contents[0].text  # type: ignore[union-attr]
        for uri, wrong in (("doctrine://lroa", "lora"), ("template://sfft", "sft"), ("run://x/log", "no job")):
            with pytest.raises(MCPError, match=wrong):
                await client.read_resource(uri)
        for uri, name, typed in (("doctrine://{topic}", "topic", "lo"), ("run://{job_id}/{part}", "part", "met")):
            found = await client.complete(
                ResourceTemplateReference(type="ref/resource", uri=uri), {"name": name, "value": typed}
            )
            assert found.completion.values in (["lora", "lora_variants"], ["metrics"])

    with_client(work)


def test_the_files_of_a_run_are_resources(tmp_path: Path) -> None:
    job = Registry().create(kind="sft", name="a", backend="embedded", base_model="demo", runs=tmp_path)
    (job.folder / "log.txt").write_text("first\n" + "x" * 70_000 + "\nlast\n")

    async def work(client: Client) -> None:
        log = (await client.read_resource(f"run://{job.id}/log")).contents[0].text  # type: ignore[union-attr]
        assert log.startswith("[the last 64 KiB of")
        assert re.search(r"\n<(untrusted-data-\w+)>\nlast\n\n</\1>$", log)
        with pytest.raises(MCPError, match="has written no metrics yet"):
            await client.read_resource(f"run://{job.id}/metrics")

    with_client(work)


def test_waiting_reports_progress_and_gives_up_in_time(tmp_path: Path) -> None:
    registry = Registry()
    job = registry.create(kind="sft", name="a", backend="embedded", base_model="demo", runs=tmp_path)
    registry.set_process(job.id, os.getpid(), None)
    registry.beat(job.id, os.getpid(), step=3, total_steps=9)
    told: list[tuple[float, float | None, str | None]] = []

    async def on_progress(done: float, total: float | None, message: str | None) -> None:
        told.append((done, total, message))

    async def work(client: Client) -> CallToolResult:
        return await client.call_tool(
            "wait_for_job", {"job_id": job.id, "timeout_s": 0.6}, progress_callback=on_progress
        )

    result = with_client(work)
    assert told[0] == (3, 9, "queued: step 3 of 9")
    assert result.structured_content["state"] == "queued"


def test_a_job_among_ten_thousand_is_found(tmp_path: Path) -> None:
    import sqlite3

    registry = Registry()
    job = registry.create(kind="sft", name="a", backend="embedded", base_model="demo", runs=tmp_path)
    registry.move(job.id, [JobState.QUEUED], JobState.CANCELLED)
    with sqlite3.connect(registry.path) as db:
        columns = [row[1] for row in db.execute("PRAGMA table_info(jobs)") if row[1] not in {"id", "created"}]
        names = ", ".join(columns)
        db.executemany(
            f"INSERT INTO jobs (id, created, {names}) SELECT ?, ?, {names} FROM jobs WHERE id = ?",
            [(f"sft-{n:06d}", float(n), job.id) for n in range(10_000)],
        )
    result = result_of("get_job", job_id="sft-005000")
    assert result.structured_content is not None
    assert result.structured_content["state"] == "cancelled"
    listed = result_of("list_jobs", limit=100).structured_content
    assert listed is not None
    assert len(listed["jobs"]) == 100
    assert listed["counts"] == {"cancelled": 10_001}


def test_the_server_imports_nothing_heavy_at_start_up() -> None:
    heavy = ("torch", "transformers", "tinker", "tinker_cookbook", "scipy", "matplotlib", "numpy", "datasets", "pandas")
    code = (
        "import sys; from sota_ml_researcher.server.app import build_server; build_server(); "
        f"print([m for m in {heavy!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_server_starts_without_what_only_a_call_needs() -> None:
    """Configs, prices and YAML took 60 ms of every start."""
    code = (
        "import sys; from sota_ml_researcher.server.app import build_server; build_server(); "
        "late = ('config', '.prices', '.meter', '.worker', '.rules', '.settings'); "
        "print([m for m in sys.modules if m.startswith('sota_ml_researcher.') and m.endswith(late)], "
        "[m for m in ('yaml', 'rich', 'psutil', 'tokenizers', 'jinja2') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] []"


def test_stdout_carries_the_protocol_alone(own_home: Path) -> None:
    parameters = StdioServerParameters(command=sys.executable, args=SERVE, env=dict(os.environ))

    async def run() -> int:
        async with Client(parameters) as client:
            await client.call_tool("list_jobs", {})
            return len((await client.list_tools()).tools)

    assert anyio.run(run) == len(TOOLS)


def test_no_secret_reaches_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINKER_API_KEY", "tml-very-secret")
    monkeypatch.setenv("TINKER_BASE_URL", "http://127.0.0.1:9")  # nobody listens there
    result = result_of("list_models", backend="tinker")
    assert result.is_error
    assert "no answer" in text_of(result)
    assert "very-secret" not in result.model_dump_json()


def test_a_missing_package_is_a_sentence_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tinker", None)  # what an installation without the training packages looks like
    monkeypatch.delitem(sys.modules, "sota_ml_researcher.backends.sampling_client", raising=False)
    result = result_of("sample_model", model="demo", prompts=["x"])
    assert result.is_error
    assert "this needs packages that are not installed (tinker). Run once: " in text_of(result)
    assert text_of(result).rstrip(".").endswith(" setup")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    refused = result_of("start_sft", overrides={"base_model": "demo", "train_file": "demo:sft_train"})
    assert refused.is_error
    assert "needs packages that are not installed" in text_of(refused)
    assert Registry().find() == []
