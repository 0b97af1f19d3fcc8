"""Five shapes of public data sets, from the file as it is to a run that has ended, as a client would go."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from job_helpers import ended, wait_until
from tiny_models import write_tiny_weights
from tool_calls import call

from sota_ml_researcher.jobs import run_files
from sota_ml_researcher.jobs.states import JobState

SHAPES = Path(__file__).parents[1] / "data" / "shapes"
TOOLS = (
    "{% if tools %}{{ tools | tojson }}{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ c.function.name }}({{ c.function.arguments | tojson }}){% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MAPPED: dict[str, tuple[str, dict[str, Any]]] = {
    "gsm8k.jsonl": ("start_sft", {"prompt": "question", "completion": "answer"}),
    "hh_rlhf.jsonl": ("start_dpo", {}),
    "sharegpt_tools.json": ("start_sft", {}),
    "ultrafeedback.jsonl": (
        "start_dpo",
        {
            "prompt": "instruction",
            "responses": "completions[*].response",
            "ratings": "completions[*].overall_score",
        },
    ),
    "spreadsheet.csv": ("start_sft", {"prompt": "Customer question", "completion": "Our reply"}),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny model whose template writes tools and their calls."""
    folder = write_tiny_weights(tmp_path_factory.mktemp("model") / "with-tools")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": TOOLS}))
    return str(folder)


@pytest.mark.usefixtures("shared_engine")
@pytest.mark.parametrize("name", MAPPED)
def test_a_file_becomes_a_run_in_two_calls_after_the_first_refusal(model: str, name: str) -> None:
    tool, columns = MAPPED[name]
    settings = {"base_model": model, "train_file": str(SHAPES / name), "num_steps": 2, "batch_size": 4, "lora_rank": 4}
    failed, text, content = call(tool, overrides=settings)
    if columns:
        assert failed
        block = text.partition("columns: ")[2].partition("</untrusted")[0]
        assert yaml.safe_load(block) == columns
        failed, text, content = call(tool, overrides={**settings, "columns": columns})
    assert not failed, text
    job = wait_until(content["job_id"], ended)
    assert job.state is JobState.SUCCEEDED, job.error
    assert run_files.result(job.folder) is not None


@pytest.mark.parametrize("name", MAPPED)
def test_a_file_is_prepared_with_nothing_lost(tmp_path: Path, name: str) -> None:
    _, columns = MAPPED[name]
    source, out = str(SHAPES / name), tmp_path / "out"
    failed, text, content = call(
        "prepare_dataset", source=source, output_dir=str(out), columns=columns or None, drop=[], split={"val": 2}
    )
    assert not failed, text
    assert content["removed"] == {} and content["rows"]["val"] == 2
    failed, text, checked = call("check_dataset", train_file=str(out / "train.jsonl"), val_file=str(out / "val.jsonl"))
    assert not failed and checked["report"]["ok"], text
    assert checked["report"]["usable_rows"] == content["rows"]["train"]


def test_what_the_files_hold_reaches_the_model(model: str, tmp_path: Path) -> None:
    shown: dict[str, str] = {}
    for name in ("sharegpt_tools.json", "spreadsheet.csv", "gsm8k.jsonl"):
        columns = MAPPED[name][1] or None
        failed, text, content = call("check_dataset", train_file=str(SHAPES / name), base_model=model, columns=columns)
        assert not failed, text
        assert content["report"]["usable_rows"] == content["rows_read"]
        shown[name] = content["report"]["example"]["text"]
    assert '[{"type": "function"' in shown["sharegpt_tools.json"]
    assert '⟦get_tide({"port": "Brest"})<|im_end|>⟧' in shown["sharegpt_tools.json"]
    assert 'Certainly.\r\n1. Prepare;\r\n2. "bake bread"' in shown["spreadsheet.csv"].replace("\n", "\r\n").replace(
        "\r\r", "\r"
    )
    assert "#### 4" in shown["gsm8k.jsonl"]
