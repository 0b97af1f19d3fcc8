"""GGUF files as base models: weights, tokenizer and template as the file has them, or a sentence why not."""

from __future__ import annotations

import itertools
import json
import struct
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import regex
import torch
from gguf_files import CORPUS, tiny_model, trained_vocabulary, write_gguf
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from sota_ml_researcher.core.errors import ModelError
from sota_ml_researcher.engine.compute.model import load_model
from sota_ml_researcher.engine.interface import LoadOptions
from sota_ml_researcher.models.configs import load_model_config
from sota_ml_researcher.models.gguf_folder import folder_of_gguf
from sota_ml_researcher.models.model_ref import resolve_model
from sota_ml_researcher.models.renderers import load_renderer

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
TEXTS = [*CORPUS[:3], "", " ", "a  b\r\n c", "007 and 3.14!", "The END's near", "<|im_start|>user\nhi<|im_end|>"]


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("tied", [True, False])
def test_the_folder_computes_what_the_model_did(tmp_path: Path, architecture: str, tied: bool) -> None:
    model = tiny_model(architecture, tied=tied)
    folder = folder_of_gguf(write_gguf(tmp_path / "m.gguf", model, architecture=architecture))
    again = AutoModelForCausalLM.from_pretrained(folder)
    tokens = torch.arange(3, 40)[None]
    with torch.no_grad():
        torch.testing.assert_close(again(tokens).logits, model(tokens).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_the_engine_runs_it_through_its_packed_layers(tmp_path: Path, architecture: str) -> None:
    folder = folder_of_gguf(write_gguf(tmp_path / "m.gguf", tiny_model(architecture), architecture=architecture))
    loaded = load_model("m", str(folder), LoadOptions(device="cpu", dtype="float32"))
    assert loaded.description["implementation"] == "packed"


def test_quantised_weights_are_close_and_kept_in_bf16(tmp_path: Path) -> None:
    model = tiny_model("llama")
    file = write_gguf(tmp_path / "q.gguf", model, storage=gguf.GGMLQuantizationType.Q8_0)
    again = AutoModelForCausalLM.from_pretrained(folder_of_gguf(file), dtype="auto")
    assert again.dtype == torch.bfloat16
    for name, weight in model.named_parameters():
        torch.testing.assert_close(again.get_parameter(name).float(), weight, rtol=0.02, atol=0.02)


def test_llama_3_positions_are_found_in_the_factors_and_others_are_refused(tmp_path: Path) -> None:
    scaling = {
        "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip
    model = tiny_model("llama", rope_parameters={"rope_theta": 10000.0, **scaling})
    plain = tiny_model("llama")
    factors = (plain.model.rotary_emb.inv_freq / model.model.rotary_emb.inv_freq).numpy()
    folder = folder_of_gguf(write_gguf(tmp_path / "m.gguf", model, extra={"rope_freqs.weight": factors}))
    assert json.loads((folder / "config.json").read_text())["rope_scaling"] == scaling
    tokens = torch.arange(3, 200)[None]
    with torch.no_grad():
        again = AutoModelForCausalLM.from_pretrained(folder)
        torch.testing.assert_close(again(tokens).logits, model(tokens).logits, rtol=1e-4, atol=1e-4)
    with pytest.raises(ModelError, match="not Llama 3's"):
        folder_of_gguf(write_gguf(tmp_path / "o.gguf", model, extra={"rope_freqs.weight": factors * 1.1}))


def reference_tokens(text: str, tokens: list[str], merges: list[str]) -> list[int]:
    """Byte-level BPE written out: digits apart, GPT-2's pieces, then the pair of the lowest rank again and again."""
    ids = {token: index for index, token in enumerate(tokens)}
    ranks = {tuple(merge.split(" ")): rank for rank, merge in enumerate(merges)}
    letters = dict(zip(range(256), _byte_letters(), strict=True))
    found: list[int] = []
    for part in regex.split(r"(<\|endoftext\|>|<\|im_start\|>|<\|im_end\|>)", text):
        if part in ids and part.startswith("<|"):
            found.append(ids[part])
            continue
        for digits in regex.findall(r"\p{N}|[^\p{N}]+", part):
            for piece in regex.findall(GPT2, digits):
                symbols = [letters[byte] for byte in piece.encode()]
                while len(symbols) > 1:
                    pairs = itertools.pairwise(symbols)
                    ranked = [(ranks.get(pair, 1 << 30), i) for i, pair in enumerate(pairs)]
                    rank, i = min(ranked)
                    if rank == 1 << 30:
                        break
                    symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]
                found += [ids[symbol] for symbol in symbols]
    return found


def _byte_letters() -> list[str]:
    """GPT-2's letter for each byte: printable ones stand for themselves, the others follow from U+0100."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in plain else chr(next(others)) for byte in range(256)]


def test_tokens_are_those_of_the_files_vocabulary_and_merges(tmp_path: Path) -> None:
    folder = folder_of_gguf(write_gguf(tmp_path / "m.gguf", tiny_model("llama")))
    tokens, merges = trained_vocabulary()
    ours, theirs = Tokenizer.from_file(str(folder / "tokenizer.json")), AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
        expected = reference_tokens(text, tokens, merges)
        assert ours.encode(text, add_special_tokens=False).ids == expected
        assert theirs.encode(text, add_special_tokens=False) == expected
        assert theirs.decode(expected) == text


@pytest.mark.parametrize(
    ("name", "text", "pieces"),
    [
        ("gpt-2", "It's 12345  ok", ["It", "'s", "Ġ12345", "Ġ", "Ġok"]),
        ("smollm", "It's 12345  ok", ["It", "'s", "Ġ", "1", "2", "3", "4", "5", "Ġ", "Ġok"]),
        ("llama-bpe", "IT'S 12345!\n x", ["IT", "'S", "Ġ", "123", "45", "!Ċ", "Ġx"]),
        ("qwen2", "IT'S 12345!\n x", ["IT", "'S", "Ġ", "1", "2", "3", "4", "5", "!Ċ", "Ġx"]),
    ],
)
def test_each_pre_tokenizer_cuts_by_its_own_rule(tmp_path: Path, name: str, text: str, pieces: list[str]) -> None:
    file = write_gguf(tmp_path / "m.gguf", tiny_model("llama"), metadata={"tokenizer.ggml.pre": name})
    tokenizer = Tokenizer.from_file(str(folder_of_gguf(file) / "tokenizer.json"))
    assert [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)] == pieces


def test_a_chat_is_rendered_by_the_files_template_and_ends_at_its_end_token(tmp_path: Path) -> None:
    renderer = load_renderer(str(write_gguf(tmp_path / "m.gguf", tiny_model("llama"))))
    assert renderer.stop == [2]
    row = renderer.render_many([[{"role": "user", "content": "cat"}, {"role": "assistant", "content": "mat"}]])[0]
    assert renderer.text_of(row.tokens).startswith("<|im_start|>user\ncat<|im_end|>")
    assert renderer.text_of([t for t, w in zip(row.tokens, row.weights, strict=True) if w]) == "mat<|im_end|>"


def test_a_file_without_a_template_is_refused_for_chats_and_its_config_is_still_read(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "m.gguf", tiny_model("llama"), metadata={"tokenizer.chat_template": None})
    assert load_model_config(resolve_model(str(file))).hidden_size == 64
    with pytest.raises(ModelError, match="no chat template"):
        load_renderer(str(file))


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"tokenizer.ggml.pre": "poro-chat"}, "its pre-tokenizer is .*poro-chat.*; known are gpt-2, smollm"),
        ({"tokenizer.ggml.pre": None}, "its pre-tokenizer is .*not named"),
        ({"tokenizer.ggml.model": "llama"}, "tokenizer is of the kind"),
        ({"tokenizer.ggml.eos_token_id": 4000}, "eos_token_id is 4000, outside of 400"),
        ({"tokenizer.ggml.merges": ["a b c"]}, "is not two tokens"),
        ({"tokenizer.ggml.merges": ["q z", "Ġ Ċ"]}, "merges make tokens that its vocabulary does not have"),
        ({"tokenizer.ggml.merges": trained_vocabulary()[1][:1]}, "tokens come back as themselves"),
        ({"split.count": 3}, "one of 3 parts of a split model"),
        ({"llama.expert_count": 8}, "mixture of experts"),
        ({"llama.block_count": 3}, r"no tensor blk.2.attn_norm.weight \(9 missing\)"),
        ({"llama.block_count": 1}, "has no place for its tensor .*blk.1."),
        ({"llama.feed_forward_length": 128}, "blk.0.ffn_gate.weight is 96 x 64, and its metadata say 128 x 64"),
        ({"llama.rope.dimension_count": 8}, "rotates 8 of 16 dimensions"),
        ({"llama.rope.scaling.type": "longrope", "llama.rope.scaling.factor": 4.0}, "positions are scaled by"),
        ({"llama.context_length": None}, "no whole number llama.context_length"),
        ({"llama.context_length": "long"}, "no whole number llama.context_length"),
        ({"llama.rope.freq_base": float("nan")}, "rope.freq_base is not one positive number"),
        ({"llama.block_count": 1 << 31}, "say 2147483648 layers, and it has 20 tensors"),
        ({"llama.attention.head_count_kv": 3}, "4 heads of 16 numbers that share 3 keys"),
        ({"llama.attention.head_count_kv": [2, 2]}, "no whole number llama.attention.head_count_kv"),
    ],
)
def test_what_cannot_be_read_is_refused_in_a_sentence(tmp_path: Path, metadata: dict[str, Any], said: str) -> None:
    file = write_gguf(tmp_path / "m.gguf", tiny_model("llama"), metadata=metadata)
    with pytest.raises(ModelError, match=said) as refused:
        resolve_model(str(file))
    assert str(file) in str(refused.value)


def test_an_unknown_architecture_is_refused(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "m.gguf", tiny_model("llama"), architecture="mamba")
    with pytest.raises(ModelError, match=r"its architecture is .*mamba.*; from GGUF files llama, qwen2, qwen3"):
        resolve_model(str(file))


@pytest.mark.parametrize("share", [0.0, 0.01, 0.2, 0.5, 0.9, 0.999])
def test_a_cut_file_is_refused_wherever_it_is_cut(tmp_path: Path, own_home: Path, share: float) -> None:
    content = write_gguf(tmp_path / "m.gguf", tiny_model("llama")).read_bytes()
    (tmp_path / "m.gguf").write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ModelError, match="the file is cut"):
        resolve_model(str(tmp_path / "m.gguf"))
    assert not list(own_home.glob("**/*.partial"))


def test_lengths_that_lie_end_at_the_end_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    huge = struct.pack("<Q", 1 << 60)
    for body in (huge, struct.pack("<Q", 1) + b"a" + struct.pack("<IIQ", 9, 4, 1 << 60)):
        file.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + body)
        with pytest.raises(ModelError, match="the file is cut"):
            resolve_model(str(file))


def test_lists_in_lists_without_end_are_refused(tmp_path: Path) -> None:
    nested = struct.pack("<Q", 1) + b"a" + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 5000
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + nested)
    with pytest.raises(ModelError, match="lists in lists"):
        resolve_model(str(tmp_path / "m.gguf"))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"hello there, no model", "not a GGUF file"),
        (b"GGUF" + struct.pack(">I", 3) + bytes(16), "big-endian"),
        (b"GGUF" + struct.pack("<I", 1) + bytes(16), "version 1"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 0), "only a vocabulary"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(ModelError, match=said):
        resolve_model(str(tmp_path / "m.gguf"))


def test_a_storage_type_that_cannot_become_numbers_is_named(tmp_path: Path) -> None:
    blocks = np.zeros((64, 64 // 32 * 40), np.uint8)  # Q8_1 holds 32 numbers in 40 bytes
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tensor("token_embd.weight", blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelError, match="stored as Q8_1, which the package gguf cannot turn into numbers"):
        resolve_model(str(tmp_path / "m.gguf"))


def test_a_file_that_is_not_there_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="No such file"):
        resolve_model(str(tmp_path / "none.gguf"))


def test_another_content_is_another_folder_and_the_same_is_made_once(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "m.gguf", tiny_model("llama"))
    first = folder_of_gguf(file)
    made = (first / "model.safetensors").stat().st_mtime_ns
    (tmp_path / "copy.gguf").write_bytes(file.read_bytes())
    assert folder_of_gguf(file) == first
    assert (first / "model.safetensors").stat().st_mtime_ns == made
    write_gguf(file, tiny_model("llama"), metadata={"tokenizer.chat_template": None})
    assert folder_of_gguf(file) != first


def test_a_conversion_that_was_killed_is_made_again(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "m.gguf", tiny_model("llama"))
    folder = folder_of_gguf(file)
    whole = (folder / "model.safetensors").read_bytes()
    partial = folder.with_name(f".{folder.name}.partial")
    folder.rename(partial)
    (partial / "model.safetensors").write_bytes(whole[:100])
    assert folder_of_gguf(file) == folder
    assert (folder / "model.safetensors").read_bytes() == whole
    assert not partial.exists()


def test_two_processes_at_once_make_one_folder(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "m.gguf", tiny_model("llama"))
    with ProcessPoolExecutor(2) as pool:
        folders = set(pool.map(folder_of_gguf, [file] * 4))
    assert len(folders) == 1
    AutoModelForCausalLM.from_pretrained(folders.pop())
