"""The peer for sampling: ``transformers.generate`` with a batch and ``num_return_sequences``. Prints one JSON line.

usage: python -m benchmarks.peer_generate MODEL_DIR [--repeats N] [--dtype bf16|fp32]
"""

from __future__ import annotations

import argparse
import json

from benchmarks import work


def main() -> None:
    import torch
    from transformers import AutoModelForCausalLM

    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--dtype", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    options = parser.parse_args()
    dtype = torch.bfloat16 if options.dtype == "bf16" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=dtype).to(options.device)
    prompts = torch.tensor(work.sample_prompts(), device=options.device)
    meter = work.Meter()

    def run() -> None:
        output = model.generate(
            prompts,
            do_sample=True,
            num_return_sequences=work.SAMPLES,
            min_new_tokens=work.SAMPLE_TOKENS,
            max_new_tokens=work.SAMPLE_TOKENS,
            return_dict_in_generate=True,
            output_logits=True,
        )
        model.compute_transition_scores(output.sequences, output.logits, normalize_logits=True)

    meter.run([run] * options.repeats)
    tokens = work.PROMPTS * work.SAMPLES * work.SAMPLE_TOKENS
    print(
        json.dumps(
            work.summary("transformers", "sample", meter, tokens, work.peak_mb(options.device))
            | {"dtype": options.dtype}
        )
    )


if __name__ == "__main__":
    main()
