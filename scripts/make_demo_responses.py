"""Record what the fine-tuned demo model answers to the demo's test set: an arm of the template eval.yaml.

ml-researcher demo   # or start_sft with the template sft.yaml
python scripts/make_demo_responses.py sft-xxxxxx
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from sota_ml_researcher.backends.connection import connect
from sota_ml_researcher.backends.sampling_client import SampleOptions, sample
from sota_ml_researcher.evals.test_set import read_test_set
from sota_ml_researcher.models.renderers import load_renderer
from sota_ml_researcher.tools.models import resolve_target

DATA = Path(__file__).parents[1] / "demo" / "data"
OPTIONS = SampleOptions(max_tokens=24, temperature=0.7, top_p=1.0, num_samples=1, seed=0)


def main() -> None:
    """Sample the job's final checkpoint once on each prompt."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("job_id")
    target = resolve_target(parser.parse_args().job_id, None, None)
    items = read_test_set(DATA / "sft_test.jsonl")
    renderer = load_renderer(target.base_model or "demo", target.renderer)
    backend = connect(target.backend, target.base_url)
    answers = sample(backend, renderer, target.wire_name, [item.messages for item in items], OPTIONS)
    rows = [{"prompt": i.prompt_text, "response": a[0].text} for i, a in zip(items, answers, strict=True)]
    (DATA / "sft_test_tuned.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
