"""A model judged against itself, many times over, through everything that comes after the judge.

Two answers of one model to a prompt differ by chance; the judge sees a part of that, adds noise of its own, and leans
to the answer it is shown first. None of it favours an arm, so that every verdict but "not distinguishable" is an error.
"""

from __future__ import annotations

import numpy as np

from sota_ml_researcher.evals.compute_results import compute_results
from sota_ml_researcher.evals.evidence import Evidence
from sota_ml_researcher.evals.judge_config import JudgeEvalConfig
from sota_ml_researcher.evals.responses import Response
from sota_ml_researcher.evals.results import SAME
from sota_ml_researcher.judges.journal import Judgment
from sota_ml_researcher.judges.prompt import EvalItem
from sota_ml_researcher.judges.rubric import default_rubric

RUBRIC = default_rubric()

_JUDGE = "openai:judge"
_LEAN, _NOISE, _TIE_BELOW = 0.3, 0.7, 0.5  # in standard deviations of the difference between two answers
_SCORES = {c.name: {"A": 3, "B": 3} for c in RUBRIC.criteria}


def one_evaluation(prompts: int, rng: np.random.Generator, *, cluster_size: int = 1) -> Evidence:
    """What a worker would have gathered: both orders of each pair, answers of random length."""
    ids = [str(n) for n in range(prompts)]
    config = JudgeEvalConfig(
        test_set="t.jsonl",
        baseline_model="same",
        finetuned_model="same",
        judge_model=(_JUDGE,),
    )
    clusters = [str(n // cluster_size) if cluster_size > 1 else None for n in range(prompts)]
    items = [
        EvalItem(i, ({"role": "user", "content": i},), None, cluster, None, 1)
        for i, cluster in zip(ids, clusters, strict=True)
    ]
    lengths = {arm: rng.integers(20, 200, prompts) for arm in config.arms}
    answers = {arm: [Response("x" * int(n), "stop", None) for n in given] for arm, given in lengths.items()}
    shared = np.repeat(rng.normal(size=prompts // cluster_size), cluster_size)  # prompts of one source go one way
    margins = shared if cluster_size == 1 else 0.6 * shared + 0.8 * rng.normal(size=prompts)
    judgments = [
        Judgment(f"{i}-{first}", _JUDGE, "pair", i, first, second, _verdict(sign * margin, rng), _SCORES)
        for i, margin in zip(ids, margins, strict=True)
        for first, second, sign in (("tuned", "baseline", 1), ("baseline", "tuned", -1))
    ]
    return Evidence(config, RUBRIC, items, answers, judgments, {})


def not_distinguishable(repeats: int, prompts: int, *, seed: int, cluster_size: int = 1) -> int:
    """How many of ``repeats`` evaluations of a model against itself end as they should."""
    rng = np.random.default_rng(seed)
    results = (compute_results(one_evaluation(prompts, rng, cluster_size=cluster_size)) for _ in range(repeats))
    return sum(result.verdict == SAME for result in results)


def _verdict(margin: float, rng: np.random.Generator) -> str:
    seen = margin + _LEAN + _NOISE * rng.normal()
    return "tie" if abs(seen) < _TIE_BELOW else "A" if seen > 0 else "B"
