"""The evaluation as a log of Inspect, so that ``inspect view`` opens it."""
# pyright: basic
# reason: inspect_ai's models are validated from plain data here

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from inspect_ai.log import (
    EvalConfig,
    EvalDataset,
    EvalLog,
    EvalMetric,
    EvalResults,
    EvalSample,
    EvalScore,
    EvalSpec,
    write_eval_log,
)
from inspect_ai.model import ChatMessageAssistant, ModelOutput
from inspect_ai.scorer import Score

from .evidence import TUNED, Evidence
from .results import ArmComparison, EvalResult
from .scoring import item_effects


def write_inspect_log(path: Path, evidence: Evidence, result: EvalResult) -> None:
    """Write the log: one sample per prompt, scored with the tuned arm's score against the baseline."""
    config = evidence.config
    effects = item_effects(evidence, TUNED)
    reasons: dict[str, list[str]] = defaultdict(list)
    for j in evidence.judgments:
        if j.kind in {"pair", "absolute"}:
            places = f"{j.first} = A, {j.second} = B" if j.second else j.first
            reasons[j.item].append(f"[{j.judge}; {places}] {j.verdict or j.unscored or j.scores}: {j.reason}")
    samples = [_sample(evidence, index, effects, reasons[item.id]) for index, item in enumerate(evidence.items)]
    run = result.run
    log = EvalLog(
        status="success",
        eval=EvalSpec(
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            task="judge_eval",
            task_id="judge_eval",
            dataset=EvalDataset(
                name=Path(config.test_set).stem,
                location=config.test_set,
                samples=len(samples),
                sample_ids=[item.id for item in evidence.items],
            ),
            model=f"tuned/{config.finetuned_model}",
            config=EvalConfig(),
            metadata={
                "arms": config.arms,
                "judges": run and run.judges,
                "prompt_hash": run and run.prompt_hash,
            },
        ),
        results=EvalResults(
            total_samples=len(samples),
            completed_samples=len(samples),
            scores=[_score(config.mode, result.main, len(samples))],
            metadata={"verdict": result.verdict, "warnings": result.warnings},
        ),
        samples=samples,
    )
    write_eval_log(log, str(path), format="json")


def _sample(evidence: Evidence, index: int, effects: Mapping[str, float], reasons: Sequence[str]) -> EvalSample:
    item = evidence.items[index]
    answers = {arm: responses[index].text for arm, responses in evidence.answers.items()}
    explanation = "\n".join(reasons)
    value = effects.get(item.id)
    score = (
        Score(value=value, answer=answers[TUNED], explanation=explanation)
        if value is not None
        else Score(value=float("nan"), answer=answers[TUNED], explanation=f"unscored\n{explanation}")
    )
    return EvalSample(
        id=item.id,
        epoch=1,
        input=item.prompt_text,
        target=item.reference or "",
        messages=[ChatMessageAssistant(content=answers[TUNED])],
        output=ModelOutput.from_content(evidence.config.finetuned_model, answers[TUNED]),
        scores={"judge": score},
        metadata={"answers": answers, "cluster": item.cluster, "category": item.category},
    )


def _score(mode: str, main: ArmComparison, total: int) -> EvalScore:
    values = {"mean": main.mean, "stderr": main.standard_error}
    if main.interval:
        values |= {"ci_low": main.interval.low, "ci_high": main.interval.high}
    metrics = {name: EvalMetric(name=name, value=value) for name, value in values.items() if value is not None}
    return EvalScore(
        name="judge", scorer=mode, scored_samples=main.scored, unscored_samples=total - main.scored, metrics=metrics
    )
