"""Whether judges with a service behind them can be asked, found out before anything is spent."""

from __future__ import annotations

from pathlib import Path

from sota_ml_researcher.core.errors import MissingDependencyError
from sota_ml_researcher.evals.judge_config import JudgeEvalConfig
from sota_ml_researcher.evals.judge_job import make_judge
from sota_ml_researcher.evals.judge_prompt import Prompter
from sota_ml_researcher.evals.rubric import load_rubric


async def check_judges(config: JudgeEvalConfig) -> None:
    """Look up the model of each Anthropic and OpenAI-compatible judge with the key at hand.

    Raises:
        ResearcherError: If a key is missing or refused, a model is unknown or retired, or a service does not answer.
        MissingDependencyError: If the evals extra is not installed.
    """
    paid = [ref for ref in config.judges if ref.is_paid]
    if not paid:
        return
    rubric = load_rubric(Path(config.rubric) if config.rubric else None)
    prompter = Prompter(rubric, config.mode, max_chars=config.max_response_chars)
    for ref in paid:
        try:
            judge = make_judge(ref, config, prompter, Path())
        except ImportError as error:
            if isinstance(error, MissingDependencyError):
                raise
            raise MissingDependencyError(
                f"the judge {ref.name} needs {error.name}", fix="Run: pip install 'sota-ml-researcher[evals]'"
            ) from error
        try:
            await judge.check()
        finally:
            await judge.close()
