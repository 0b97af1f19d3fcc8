"""The process that scores by rule, so that a regular expression or an equation without end can be killed.

``python -m sota_ml_researcher.rewards.scoring_process``: it says when it is ready, then answers each JSON line with a
line ``NUMBER again JSON`` (`reward_process`). No text of a data file or a model runs here as code.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from typing import Any

from . import math_answers, reward_rules


def score(kind: str, given: Mapping[str, Any]) -> float:
    """The score of one response.

    Raises:
        ValueError: If there is no such rule.
    """
    response = str(given["response"])
    if kind == "math":
        return float(math_answers.is_right(response, str(given["answer"])))
    if kind == "exact":
        return reward_rules.exact(response, str(given["answer"]), ignore_case=given["ignore_case"])
    if kind == "regex":
        return reward_rules.matches(response, given["pattern"])
    if kind == "format" and given.get("json_schema") is not None:
        return reward_rules.fits_schema(response, given["json_schema"])
    if kind == "format":
        return reward_rules.has_tags(response, given["tags"])
    raise ValueError(f"no rule is named {kind}")


def main() -> None:
    """Answer until there is nothing more to read."""
    requests, out = sys.stdin, os.fdopen(os.dup(1), "w", encoding="utf-8")
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: PTH123, SIM115

    def say(line: str) -> None:
        out.write(line + "\n")
        out.flush()

    say(json.dumps({"ready": True}))
    for line in requests:
        given = json.loads(line)
        try:
            answer: dict[str, Any] = {"score": score(given["kind"], given)}
        except Exception as error:  # a broken check is told apart from a wrong answer by whoever asked
            answer = {"error": f"{type(error).__name__}: {error}"[:300].encode(errors="replace").decode()}
        say(f"{given['id']} again {json.dumps(answer)}")


if __name__ == "__main__":
    main()
