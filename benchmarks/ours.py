"""The engine through the real SDK, one kind of work per process. Prints one JSON line.

usage: python -m benchmarks.ours sft|ragged|dpo|grpo|sample|curve MODEL_DIR [--steps N] [--dtype auto]

The engine runs in its own process; ``peak_mb`` is its peak and the client's together.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import work
from benchmarks.methods import KEY, start_engine


def _datum(tokens: list[int], inputs: dict[str, list[Any]] | None = None) -> Any:
    """Next-token data; the first half of the tokens is prompt unless ``inputs`` say otherwise."""
    from tinker import types

    targets = tokens[1:]
    prompt = len(tokens) // 2 - 1
    values_of = inputs or {"weights": [0.0] * prompt + [1.0] * (len(targets) - prompt)}
    tensors = {
        name: types.TensorData(data=values, dtype="float32", shape=[len(values)]) for name, values in values_of.items()
    }
    tensors["target_tokens"] = types.TensorData(data=targets, dtype="int64", shape=[len(targets)])
    return types.Datum(model_input=types.ModelInput.from_ints(tokens[:-1]), loss_fn_inputs=tensors)


def _step(client: Any, data: Any, loss: str) -> None:
    from tinker import types

    pending = client.forward_backward(data, loss)
    client.optim_step(types.AdamParams(learning_rate=1e-4)).result()
    pending.result()


def sft(service: Any, meter: work.Meter, steps: int, *, ragged: bool) -> float:
    """Supervised steps."""
    client = service.create_lora_training_client("bench", rank=work.RANK, seed=0).result()
    batches = work.sft_batches(steps, ragged=ragged)
    data = [[_datum(tokens) for tokens in batch] for batch in batches]
    meter.run([lambda batch=batch: _step(client, batch, "cross_entropy") for batch in data])
    return sum(len(tokens) for batch in batches for tokens in batch) / steps


def dpo(service: Any, meter: work.Meter, steps: int) -> float:
    """DPO steps as the cookbook takes them: reference scores of each batch, then a custom loss."""
    import torch
    from tinker import types

    client = service.create_lora_training_client("bench", rank=work.RANK, seed=0).result()
    reference = service.create_sampling_client(base_model="bench").result()
    batches = work.pair_batches(steps)

    def step(pairs: list[dict[str, list[int]]]) -> None:
        sequences = [pair["prompt"] + pair[side] for pair in pairs for side in ("chosen", "rejected")]
        start = len(pairs[0]["prompt"])
        pending = [reference.compute_logprobs(types.ModelInput.from_ints(tokens)) for tokens in sequences]
        before = [sum(one.result()[start:]) for one in pending]

        def loss(_data: Any, logprobs: list[Any]) -> tuple[Any, dict[str, float]]:
            margins = torch.stack([one[start - 1 :].sum() for one in logprobs]) - torch.tensor(before)
            value = -torch.nn.functional.logsigmoid(0.1 * (margins[0::2] - margins[1::2])).mean()
            return value, {"dpo": float(value.detach())}

        data = [_datum(tokens, {"weights": [1.0] * (len(tokens) - 1)}) for tokens in sequences]
        pending_loss = client.forward_backward_custom(data, loss)
        client.optim_step(types.AdamParams(learning_rate=1e-4)).result()
        pending_loss.result()

    meter.run([lambda batch=batch: step(batch) for batch in batches])
    pair = batches[0][0]
    return 2 * work.BATCH * (len(pair["prompt"]) + len(pair["chosen"]))


def grpo(service: Any, meter: work.Meter, steps: int) -> float:
    """Sampling with fresh weights, then a policy gradient step on what was sampled."""
    from tinker import types

    client = service.create_lora_training_client("bench", rank=work.RANK, seed=0).result()
    tokenizer = client.get_tokenizer()
    params = types.SamplingParams(max_tokens=work.GRPO_TOKENS, stop=[])  # all of one length

    def step(number: int) -> None:
        sampler = client.save_weights_and_get_sampling_client().result()
        prompts = [tokenizer.encode(f"{i} plus {i} equals") for i in range(number * 4, number * 4 + work.GROUPS)]
        pending = [sampler.sample(types.ModelInput.from_ints(p), work.GROUP, params) for p in prompts]
        data: list[Any] = []
        for prompt, future in zip(prompts, pending, strict=True):
            for index, one in enumerate(future.result().sequences):
                silent = [0.0] * (len(prompt) - 1)
                inputs = {
                    "logprobs": silent + list(one.logprobs),
                    "advantages": silent + [1.0 if index % 2 else -1.0] * len(one.tokens),
                }
                data.append(_datum(prompt + list(one.tokens), inputs))
        _step(client, data, "importance_sampling")

    meter.run([lambda number=number: step(number) for number in range(steps)])
    return work.GROUPS * work.GROUP * work.GRPO_TOKENS


def sample(service: Any, meter: work.Meter, steps: int) -> float:
    """Sampling 16 prompts, 8 times each, at once."""
    from tinker import types

    sampler = service.create_sampling_client(base_model="bench").result()
    params = types.SamplingParams(max_tokens=work.SAMPLE_TOKENS, stop=[])
    prompts = [types.ModelInput.from_ints(tokens) for tokens in work.sample_prompts()]

    def run() -> None:
        for one in [sampler.sample(prompt, work.SAMPLES, params) for prompt in prompts]:
            one.result()

    meter.run([run] * steps)
    return work.PROMPTS * work.SAMPLES * work.SAMPLE_TOKENS


def curve(service: Any, steps: int) -> dict[str, Any]:
    """Seconds of a supervised step by number of sequences, and by number of adapters that wait at once."""
    client = service.create_lora_training_client("bench", rank=work.RANK, seed=0).result()
    pool = [tokens for batch in work.sft_batches(4, ragged=False) for tokens in batch]
    by_count: dict[int, float] = {}
    for count in (1, 4, 16, 64):
        data = [_datum(tokens) for tokens in pool[:count]]
        meter = work.Meter()
        meter.run([lambda data=data: _step(client, data, "cross_entropy")] * (steps + 1))
        by_count[count] = round(min(meter.wall_s[1:]), 4)
    by_clients: dict[int, float] = {}
    clients = [service.create_lora_training_client("bench", rank=work.RANK, seed=i).result() for i in range(8)]
    data = [_datum(tokens) for tokens in pool[:4]]
    for count in (1, 2, 4, 8):

        def run(count: int = count) -> None:
            for future in [one.forward_backward(data, "cross_entropy") for one in clients[:count]]:
                future.result()

        meter = work.Meter()
        meter.run([run] * (steps + 1))
        by_clients[count] = round(min(meter.wall_s[1:]), 4)
    return {"by_sequences": by_count, "by_adapters": by_clients}


def _peak_mb(pid: int) -> float:
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    status = Path(f"/proc/{pid}/status")
    if not status.exists():
        return own
    high = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return own + int(high.split()[1]) / 1024


def _run(options: argparse.Namespace, service: Any, url: str, pid: int) -> dict[str, Any]:
    import httpx2

    if options.method == "curve":
        return curve(service, options.steps)
    meter = work.Meter(pid, lambda: httpx2.get(f"{url}/api/v1/healthz").json()["compute_s"])
    works: dict[str, Callable[[], float]] = {
        "sft": lambda: sft(service, meter, options.steps, ragged=False),
        "ragged": lambda: sft(service, meter, options.steps, ragged=True),
        "dpo": lambda: dpo(service, meter, options.steps),
        "grpo": lambda: grpo(service, meter, options.steps),
        "sample": lambda: sample(service, meter, options.steps),
    }
    tokens = works[options.method]()
    (loaded,) = httpx2.get(f"{url}/api/v1/healthz").json()["loaded"].values()
    on_gpu = loaded["device"].startswith("cuda")
    peak = work.peak_mb("cuda", pid) if on_gpu else _peak_mb(pid)
    result = work.summary("engine", options.method, meter, tokens, peak)
    # Everything between the client's call and its result that is not the compute thread's work.
    overhead = 1 - meter.computed_s / sum(meter.wall_s)
    return result | {"overhead": round(overhead, 4), "dtype": loaded["dtype"], "device": loaded["device"]}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("method", choices=["sft", "ragged", "dpo", "grpo", "sample", "curve"])
    parser.add_argument("model")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    os.environ["TINKER_TELEMETRY"] = "0"
    import tinker

    with tempfile.TemporaryDirectory() as folder:
        extra = ("--dtype", options.dtype, "--device", options.device)
        process, url = start_engine(Path(options.model), Path(folder), *extra, name="bench")
        try:
            service = tinker.ServiceClient(base_url=url, api_key=KEY)
            print(json.dumps(_run(options, service, url, process.pid)), flush=True)
        finally:
            process.terminate()
            process.wait(timeout=60)
    sys.stdout.flush()
    os._exit(0)  # the SDK's threads would keep the interpreter for a while


if __name__ == "__main__":
    main()
