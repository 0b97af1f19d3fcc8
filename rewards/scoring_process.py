"""The process that scores by rule, so that a regular expression or an equation without end can be killed.

``python -m sota_ml_researcher.rewards.scoring_process``: it says when it is ready, then answers each JSON line with a
line ``NUMBER again JSON`` (`process_pool`). No text of a data file or a model runs here as code.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from typing import Any

from . import math_answers, reward_rules


def score(kind: str, request: Mapping[str, Any]) -> float:
    """The score of one response.

    Raises:
        ValueError: If there is no such rule.
    """
    response = str(request["response"])
    if kind == "math":
        return float(math_answers.is_right(response, str(request["answer"])))
    if kind == "exact":
        return reward_rules.exact(response, str(request["answer"]), ignore_case=request["ignore_case"])
    if kind == "regex":
        return reward_rules.matches(response, request["pattern"])
    if kind == "format" and request.get("json_schema") is not None:
        return reward_rules.fits_schema(response, request["json_schema"])
    if kind == "format":
        return reward_rules.has_tags(response, request["tags"])
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
        request = json.loads(line)
        try:
            answer: dict[str, Any] = {"score": score(request["kind"], request)}
        except Exception as error:  # a broken check is told apart from a wrong answer by whoever asked
            answer = {"error": f"{type(error).__name__}: {error}"[:300].encode(errors="replace").decode()}
        say(f"{request['id']} again {json.dumps(answer)}")


if __name__ == "__main__":
    main()
