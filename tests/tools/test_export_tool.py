"""The export tool through a real client: a short demo run, then its adapter on disk."""

import json
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import Client
from mcp_types import CallToolResult, TextContent

from sota_ml_researcher.jobs.registry import Registry
from sota_ml_researcher.server.app import build_server
from sota_ml_researcher.tools.answers import MAX_TEXT


async def finished(client: Client, job_id: str) -> None:
    state = ""
    with anyio.fail_after(300):
        while state not in {"succeeded", "failed"}:
            result = await client.call_tool("wait_for_job", {"job_id": job_id, "timeout_s": 20})
            assert result.structured_content
            state = result.structured_content["state"]
    assert state == "succeeded"


def text_of(result: CallToolResult) -> str:
    assert isinstance(result.content[0], TextContent)
    return result.content[0].text


def test_a_jobs_checkpoint_comes_home_as_a_peft_adapter(shared_engine: None, tmp_path: Path) -> None:
    settings = {
        "base_model": "demo",
        "train_file": "demo:sft_train",
        "val_file": "demo:sft_val",
        "num_steps": 3,
        "batch_size": 4,
        "lora_rank": 4,
        "eval_every": 2,
    }

    async def run() -> None:
        async with Client(build_server()) as client:
            started = await client.call_tool("start_sft", {"overrides": settings})
            assert started.structured_content, text_of(started)
            job_id = started.structured_content["job_id"]
            await finished(client, job_id)
            wanted = {"model": f"{job_id}:best", "output_dir": str(tmp_path / "home")}
            content: dict[str, Any] = {"done": False}
            while not content["done"]:
                made = await client.call_tool("export_checkpoint", wanted)
                assert not made.is_error, text_of(made)
                content = made.structured_content or {}
            assert content["folder"] == str(tmp_path / "home")
            config = json.loads((Path(content["folder"]) / "adapter_config.json").read_bytes())
            assert (config["r"], config["lora_alpha"], config["peft_type"]) == (4, 32, "LORA")
            assert job_id in (Path(content["folder"]) / "README.md").read_text()
            assert len(text_of(made)) <= MAX_TEXT

    anyio.run(run)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "sft-000000"}, "there is no job 'sft-000000'"),
        ({"model": "Qwen/Qwen3-8B"}, "names no checkpoint. Give a job id"),
        ({"model": "sft-000000:worst"}, "names no checkpoint"),
        ({"model": "tinker://a:train:0/weights/b", "publish_to": "nobody"}, "Write it as owner/name"),
        ({"model": "sft-000000", "format": "gguf"}, "format: input should be 'adapter' or 'merged'"),
    ],
)
def test_a_wrong_request_is_a_sentence(arguments: dict[str, Any], message: str) -> None:
    async def run() -> CallToolResult:
        async with Client(build_server()) as client:
            return await client.call_tool("export_checkpoint", arguments)

    result = anyio.run(run)
    assert result.is_error
    assert message in text_of(result)


def test_a_job_without_a_checkpoint_has_nothing_to_export(tmp_path: Path) -> None:
    job = Registry().create(kind="sft", name="a", backend="embedded", base_model="demo", runs=tmp_path)

    async def run() -> CallToolResult:
        async with Client(build_server()) as client:
            return await client.call_tool("export_checkpoint", {"model": job.id})

    assert "has no checkpoint yet" in text_of(anyio.run(run))
