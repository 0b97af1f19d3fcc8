"""The process that scores by rule, so that a regular expression or an equation without end can be killed.

``python -m sota_ml_researcher.training.reward_child``: one JSON line in, one out.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from typing import Any

from sota_ml_researcher.training import program_output, reward_code, reward_math, reward_rules
from sota_ml_researcher.training.sandbox import Limits


def score(kind: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The score of one response: ``{"score": number}``, with a ``note`` where there is something to tell.

    Of the kind ``run`` the response is a program, and what comes back is its output.
    """
    response = str(given["response"])
    if kind == "math":
        return {"score": float(reward_math.is_right(response, str(given["answer"])))}
    if kind == "exact":
        return {"score": reward_rules.exact(response, str(given["answer"]), ignore_case=given["ignore_case"])}
    if kind == "regex":
        return {"score": reward_rules.matches(response, given["pattern"])}
    if kind == "format":
        if given.get("json_schema") is not None:
            return {"score": reward_rules.fits_schema(response, given["json_schema"])}
        return {"score": reward_rules.has_tags(response, given["tags"])}
    if kind == "run":
        return program_output.run(
            given["response"],
            mode=given["mode"],
            limits=Limits(**given["limits"]),
            wall_s=given["wall_s"],
            most=given["most"],
            seed=given["seed"],
        )
    failure = reward_code.run_tests(
        reward_code.code_in(response),
        given["tests"],
        mode=given["mode"],
        limits=Limits(**given["limits"]),
        wall_s=given["wall_s"],
        entry=given.get("entry"),
    )
    return {"score": float(not failure), "note": failure}


def main() -> None:
    """Answer until there is nothing more to read."""
    requests, out = sys.stdin, os.fdopen(os.dup(1), "w", encoding="utf-8")
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: PTH123, SIM115
    for line in requests:
        given = json.loads(line)
        try:
            answer = score(given["kind"], given)
        except Exception as error:  # a broken check is told apart from a wrong answer by whoever asked
            answer = {"error": f"{type(error).__name__}: {error}"[:300]}
        out.write(json.dumps(answer) + "\n")
        out.flush()


if __name__ == "__main__":
    main()
