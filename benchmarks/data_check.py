"""How much slower a full check of a training file is than the bare tokenizer, and how much memory it takes.

``python -m benchmarks.data_check [--rows 1000000]``: writes rows of about 200 tokens to a temporary file, checks it,
and tokenizes the same text with ``encode_batch_fast`` alone. The ratios are what to look at: of time on the clock, and
of processor time, which other programs on the machine hardly change.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from benchmarks.models import CHATML
from sota_ml_researcher.data.check import check_dataset
from sota_ml_researcher.models.renderers import load_renderer

WORDS = 140
PARTS = ("write", "check", "bare")


def make_words(count: int) -> list[str]:
    rng = random.Random(1)
    syllables = [c + v for c in "bdfghklmnprstvwz" for v in "aeiou"]
    return ["".join(rng.choices(syllables, k=rng.randint(1, 4))) for _ in range(count)]


def make_model(folder: Path, words: list[str]) -> Path:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=16_000,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([" ".join(words)], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>", "chat_template": CHATML}))
    (folder / "config.json").write_text("{}")
    return folder


def write_rows(path: Path, rows: int, words: list[str]) -> None:
    rng = random.Random(2)
    with path.open("w") as file:
        for _ in range(rows):
            text = rng.choices(words, k=WORDS)
            row = {"prompt": " ".join(text[: WORDS // 2]), "completion": " ".join(text[WORDS // 2 :])}
            file.write(json.dumps(row) + "\n")


def processor_s() -> float:
    """Processor time of this process so far, of all its threads."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def bare_tokenizer_s(path: Path, folder: Path) -> tuple[float, float, int]:
    """Seconds that ``encode_batch_fast`` alone needs for the text, on the clock and of processors, and its tokens."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    spent = processor = 0.0
    tokens = 0
    batch: list[str] = []

    def flush() -> None:
        nonlocal spent, processor, tokens
        began, used = time.perf_counter(), processor_s()
        encodings = tokenizer.encode_batch_fast(batch, add_special_tokens=False)
        spent += time.perf_counter() - began
        processor += processor_s() - used
        tokens += sum(len(e) for e in encodings)
        batch.clear()

    with path.open() as file:
        for line in file:
            row = json.loads(line)
            batch += [row["prompt"], row["completion"]]
            if len(batch) >= 2048:
                flush()
    flush()
    return spent, processor, tokens


def check(path: Path, folder: Path) -> dict[str, Any]:
    renderer = load_renderer(str(folder))
    began, used = time.perf_counter(), processor_s()
    report = check_dataset(path, renderer=renderer, max_seq_len=4096)
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    spent, processor = time.perf_counter() - began, processor_s() - used
    seconds = {"full_check_s": round(spent, 2), "full_check_processor_s": round(processor, 2)}
    return {**seconds, "peak_mb": round(peak_mb), "ok": report.ok}


def run(part: str, name: str, rows: int) -> dict[str, Any]:
    path, folder = Path(name) / "train.jsonl", Path(name)
    if part == "check":
        return check(path, folder)
    if part == "bare":
        spent, processor, tokens = bare_tokenizer_s(path, folder)
        seconds = {"bare_tokenizer_s": round(spent, 2), "bare_tokenizer_processor_s": round(processor, 2)}
        return {**seconds, "tokens_per_row": round(tokens / rows, 1)}
    words = make_words(20_000)
    write_rows(path, rows, words)
    make_model(folder, words)
    return {"rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--folder", type=Path, help="where the rows lie; without it a temporary folder")
    parser.add_argument("--part", choices=PARTS, help="one part alone, on --folder: a million rows take minutes each")
    options = parser.parse_args()
    if options.part and not options.folder:
        parser.error("--part needs --folder")
    with nullcontext(str(options.folder)) if options.folder else tempfile.TemporaryDirectory() as name:
        Path(name).mkdir(parents=True, exist_ok=True)
        result: dict[str, Any] = {}
        for part in [options.part] if options.part else PARTS:
            result |= run(part, name, options.rows)
    if options.part is None:
        result["ratio"] = round(result["full_check_s"] / result["bare_tokenizer_s"], 2)
        result["processor_ratio"] = round(result["full_check_processor_s"] / result["bare_tokenizer_processor_s"], 2)
        result["rows_per_s"] = round(options.rows / result["full_check_s"])
    print(json.dumps(result))


if __name__ == "__main__":
    main()
