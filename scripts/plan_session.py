"""A planned experiment on a spreadsheet export, through a real MCP client: plan, baseline, smoke, real run, verdict.

``python scripts/plan_session.py`` prints it; docs/plan.md shows the output. The sheet holds the demo's rows under names
of its own, since the packaged model can learn little else.
"""

from __future__ import annotations

import csv
import json
import tempfile
from pathlib import Path
from typing import Any

import anyio
from client_session import printed_session

from sota_ml_researcher.core.paths import demo_data

ROWS = 1600


def write_sheet(path: Path) -> None:
    """A sheet as a European spreadsheet exports it: semicolons, a column of row numbers."""
    lines = demo_data("sft_train", where="sheet").read_text(encoding="utf-8").splitlines()[:ROWS]
    with path.open("w", newline="", encoding="utf-8") as file:
        sheet = csv.writer(file, delimiter=";")
        sheet.writerow(["No", "Question", "Our answer"])
        for number, line in enumerate(lines, start=1):
            asked, answered = (message["content"] for message in json.loads(line)["messages"])
            sheet.writerow([number, asked, answered])


async def session(home: Path) -> None:
    """Run it, with everything under ``home``."""
    write_sheet(home / "sheet.csv")
    async with printed_session(home, {"ML_RESEARCHER_HOME": str(home / "state")}) as shown:

        async def finished(tool: str, **arguments: Any) -> str:
            job_id = (await shown.call(tool, **arguments))["job_id"]
            await shown.ended(job_id)
            return job_id

        await shown.call("propose_plan", train_file="sheet.csv", goal="answer as the sheet does", base_model="demo")
        config, evaluation = "sheet-plan/experiment.yaml", "sheet-plan/evaluation.yaml"
        await shown.call("start_sft", config=config, overrides={"lora_rank": 8})
        await finished("run_judge_eval", config=evaluation)
        await finished("start_sft", config=config, overrides={"num_steps": 20})
        tuned = await finished("start_sft", config=config)
        await shown.call("analyze_run", run=tuned)
        print("\n".join((home / "state" / "runs" / tuned / "analysis.md").read_text().splitlines()[:16]) + "\n")
        await finished("run_judge_eval", config=evaluation, overrides={"finetuned_model": tuned})


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        anyio.run(session, Path(folder))
