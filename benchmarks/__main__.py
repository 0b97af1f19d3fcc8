"""The engine through the real SDK compared with TRL + PEFT and transformers, interleaved in one run.

usage: python -m benchmarks [--rounds 3] [--steps 4] [--works sft,ragged,dpo,grpo,sample] [--shape 29m | --model DIR]
       [--device cpu|cuda] [--page docs/benchmarks.md] [--json FILE]

Every figure comes from its own process; a round runs the engine and the peer of each work one after the other. The
ratio of a work is the median over rounds of peer seconds / engine seconds, with the lowest and highest. On a GPU the
peer trains with eager, SDPA and flash attention, and its best counts. Needs the `bench` extra.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.models import SHAPES, write_model

TARGETS = {"sft": 2.0, "ragged": 3.0, "dpo": 2.5, "grpo": 3.0, "sample": 3.0}
TITLES = {
    "sft": "SFT, 16 x 128 tokens",
    "ragged": "SFT, 16 sequences of 32 to 256",
    "dpo": "DPO, 16 pairs of 96 tokens",
    "grpo": "GRPO step, 4 x 8 x 32 new tokens",
    "sample": "sampling, 16 x 8 x 64 tokens",
}


def _run(module: str, *arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", f"benchmarks.{module}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1])
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return json.loads(lines[-1])


def _pair(name: str, model: str, options: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    device = ("--device", options.device, "--dtype", options.dtype)
    ours = _run("ours", name, model, "--steps", str(options.steps), *device)
    if name == "sample":
        return ours, _run("peer_generate", model, "--repeats", str(options.steps), *device)
    peer = ("peer_trl", name, model, "--steps", str(options.steps), *device)
    tried = [_run(*peer, *(("--attention", kind) if kind else ())) for kind in _attentions(options.device)]
    return ours, min(tried, key=lambda result: result["s_per_step"])


def _attentions(device: str) -> list[str | None]:
    """The peer's implementations of attention to try; None is its default."""
    if device == "cpu":
        return [None]
    return ["eager", "sdpa", *(["flash_attention_2"] if find_spec("flash_attn") else [])]


def native_dtype(device: str) -> str:
    """bf16 where the hardware multiplies it, else fp32: emulated bf16 would be a handicap of the peer's."""
    import torch

    from sota_ml_researcher.engine.compute.loading import choose_dtype

    return "bf16" if choose_dtype("auto", torch.device(device)) == torch.bfloat16 else "fp32"


def matrix_rate(device: str, shape: str, dtype: str) -> float:
    """The highest GFLOP/s that a matrix product of the model's shape reaches here."""
    import torch

    kind = torch.bfloat16 if dtype == "bf16" else torch.float32
    hidden, intermediate = SHAPES[shape][0], SHAPES[shape][5]
    a = torch.randn(2048, hidden, dtype=kind, device=device)
    b = torch.randn(intermediate, hidden, dtype=kind, device=device)
    best = float("inf")
    for _ in range(30):
        began = time.perf_counter()
        product = torch.nn.functional.linear(a, b)
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return 2 * product.numel() * hidden / best / 1e9


def step_gflop(shape: str, tokens: int, scored: float = 0.5) -> float:
    """Arithmetic of a LoRA step with a frozen base: forward and input gradients; the head where tokens are scored.

    A matrix of n parameters costs 2 n per token forward and 2 n for the gradient of its input (Kaplan et al. 2020,
    arXiv 2001.08361, section 2.1, less the weights' gradient). The unembedding is computed for all tokens forward and
    for the ``scored`` share of them backward.
    """
    hidden, layers, heads, key_heads, size, intermediate, vocabulary = SHAPES[shape]
    layer = hidden * size * (2 * heads + 2 * key_heads) + 3 * hidden * intermediate
    return tokens * (4 * layers * layer + (2 + 2 * scored) * hidden * vocabulary) / 1e9


def _row(name: str, pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> str:
    def middle(side: int, key: str) -> float:
        return statistics.median(pair[side][key] for pair in pairs)

    def per_token(result: dict[str, Any], key: str) -> float:
        return result[key] / result["tokens_per_step"]

    walls = [per_token(peer, "s_per_step") / per_token(ours, "s_per_step") for ours, peer in pairs]
    wall = f"{statistics.median(walls):.1f}x ({min(walls):.1f} to {max(walls):.1f})"
    cpu = statistics.median(
        per_token(peer, "cpu_s_per_step") / per_token(ours, "cpu_s_per_step") for ours, peer in pairs
    )
    return (
        f"| {TITLES[name]} | {middle(0, 's_per_step'):.3g} | {middle(1, 's_per_step'):.3g} | "
        f"{middle(0, 'tokens_per_s'):.0f} | {middle(1, 'tokens_per_s'):.0f} | {wall} | {cpu:.1f}x | "
        f"{TARGETS[name]:.1f}x | {middle(0, 'peak_mb'):.0f} | {middle(1, 'peak_mb'):.0f} | "
        f"{100 * middle(0, 'overhead'):.1f}% |"
    )


def _machine(device: str) -> str:
    if device == "cuda":
        import torch

        card = torch.cuda.get_device_properties(0)
        return (
            f"{card.name}, {card.total_memory / 2**30:.0f} GiB, driver of CUDA {torch.version.cuda}; {_machine('cpu')}"
        )
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        model = next(
            (line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line), model
        )
    load = ", ".join(f"{one:.1f}" for one in os.getloadavg())
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft", "trl", "tinker"))
    cores = f"{os.cpu_count()} cores, load average {load} at the end"
    return f"{model}, {cores}; Python {platform.python_version()}, {packages}"


def _page(options: argparse.Namespace, results: dict[str, list[Any]], curve: dict[str, Any], rate: float | None) -> str:
    sft = results.get("sft", [])
    lines = [
        f"Command: `python -m benchmarks {' '.join(sys.argv[1:])}` on {_machine(options.device)}.",
        "",
        "Seconds are the median step of each process (the first left out), then the median over rounds; the engine's",
        "process is driven by the unmodified SDK over HTTP. CPU seconds include the client's. MB on a GPU are",
        f"those of its memory. Both compute in {options.dtype}.",
        "",
        "| work | engine s | peer s | engine tok/s | peer tok/s | ratio, wall | ratio, CPU s | target | engine MB "
        "| peer MB | overhead |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
        *[_row(name, pairs) for name, pairs in results.items()],
        "",
        f"Seconds of an SFT step by number of sequences of 128 tokens: {_list(curve['by_sequences'])}.",
        f"Seconds until all are done, by number of adapters with 4 such sequences each: {_list(curve['by_adapters'])}.",
    ]
    if sft and rate:
        seconds = statistics.median(ours["s_per_step"] for ours, _ in sft)
        done = step_gflop(options.shape, sft[0][0]["tokens_per_step"]) / seconds
        lines += [
            "",
            f"Utilisation in the SFT step: {done:.0f} GFLOP/s of the {rate:.0f} GFLOP/s that a matrix product of "
            f"the model's shape reached in the same run ({100 * done / rate:.0f}%).",
        ]
    return "\n".join([*lines, ""])


def _list(values: dict[str, float]) -> str:
    return ", ".join(f"{count}: {seconds:.2f}" for count, seconds in values.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--works", default=",".join(TARGETS))
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["bf16", "fp32"], help="of both; default: bf16 where it is native")
    model = parser.add_mutually_exclusive_group()
    model.add_argument("--shape", choices=SHAPES, default="29m", help="a random-weight model of this shape")
    model.add_argument("--model", type=Path, help="a model folder instead")
    parser.add_argument("--page", type=Path, help="replace the measured part of this page")
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    options = parser.parse_args()
    options.dtype = options.dtype or native_dtype(options.device)
    results: dict[str, list[Any]] = {name: [] for name in options.works.split(",")}
    with tempfile.TemporaryDirectory() as folder:
        model = str(options.model or write_model(Path(folder) / "model", options.shape))
        for number in range(options.rounds):
            for name, pairs in results.items():
                pairs.append(_pair(name, model, options))
                print(json.dumps({"round": number + 1, "work": name, "engine": pairs[-1][0], "peer": pairs[-1][1]}))
                sys.stdout.flush()
        curve = _run("ours", "curve", model, "--steps", "2", "--device", options.device, "--dtype", options.dtype)
    rate = None if options.model else matrix_rate(options.device, options.shape, options.dtype)
    text = _page(options, results, curve, rate)
    print(text)
    if options.json:
        figures = {"machine": _machine(options.device), "model": str(options.model or options.shape), "gflops": rate}
        options.json.write_text(json.dumps(figures | {"works": results, "curve": curve}, indent=2) + "\n")
    if options.page:
        before, mark, rest = options.page.read_text().partition("<!-- measured -->\n")
        options.page.write_text(before + mark + text + mark + rest.partition(mark)[2])


if __name__ == "__main__":
    main()
