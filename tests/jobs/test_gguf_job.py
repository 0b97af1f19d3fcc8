"""A GGUF file as base model from the plan to the exported model, as a client would go."""

import json
from pathlib import Path

import pytest
from gguf_files import tiny_model, write_gguf
from job_helpers import ended, settings, start, wait_until
from tool_calls import call
from transformers import AutoModelForCausalLM

from sota_ml_researcher.jobs.states import JobState


@pytest.mark.usefixtures("shared_engine")
def test_a_gguf_file_is_measured_trained_sampled_and_exported(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "model.gguf", tiny_model("llama"))
    config = settings(tmp_path, file, num_steps=3, eval_every=0, checkpoint_every=0)
    failed, text, _ = call("check_dataset", train_file=config["train_file"], base_model=str(file))
    assert not failed, text
    failed, text, capacity = call(
        "validate_capacity", base_model=str(file), lora_rank=4, train_file=config["train_file"]
    )
    assert not failed and capacity["parameters"] > 0, text
    job = wait_until(start(**config).id, ended)
    assert job.state is JobState.SUCCEEDED, job.error
    for model in (str(file), job.id):
        failed, text, sampled = call("sample_model", model=model, prompts=["1 plus 1?"], max_tokens=4)
        assert not failed and sampled["samples"], text
    wanted = {"model": job.id, "output_dir": str(tmp_path / "merged"), "format": "merged"}
    done = False
    while not done:
        failed, text, exported = call("export_checkpoint", **wanted)
        assert not failed, text
        done = exported["done"]
    merged = AutoModelForCausalLM.from_pretrained(exported["folder"])
    assert merged.config.model_type == "llama"
    assert json.loads((Path(exported["folder"]) / "tokenizer_config.json").read_text())["eos_token"] == "<|im_end|>"


def test_a_cut_file_is_refused_before_anything_starts(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "model.gguf", tiny_model("llama"))
    file.write_bytes(file.read_bytes()[:5000])
    failed, text, _ = call("start_sft", overrides=settings(tmp_path, file), validate_only=True)
    assert failed and "the file is cut" in text and str(file) in text
