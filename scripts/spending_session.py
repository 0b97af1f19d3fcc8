"""A session with prices through a real MCP client: plan, confirmation, meter, alert, stop at the cap, resume.

The embedded engine is given prices, so every step is the one hosted training takes.
``python scripts/spending_session.py`` prints it; docs/spending.md shows the output.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import anyio
from mcp import Client, StdioServerParameters

PRICES = {"backends": {"embedded": {"models": {"demo": {"train": 1.0, "prefill": 0.5, "sample": 2.0}}}}}


async def session(home: Path) -> None:
    """Run it, with everything under ``home``."""
    prices = home / "my-prices.yaml"
    prices.write_text(json.dumps(PRICES), encoding="utf-8")
    env = {**os.environ, "ML_RESEARCHER_PRICES": str(prices), "ML_RESEARCHER_HOME": str(home)}
    server = StdioServerParameters(
        command=sys.executable, args=["-m", "sota_ml_researcher.server", "serve"], env=env, cwd=home
    )
    async with Client(server) as client:

        async def call(tool: str, **arguments: Any) -> dict[str, Any]:
            print(f"> {tool}({', '.join(f'{k}={v!r}' for k, v in arguments.items())})".replace(str(home), "~"))
            result = await client.call_tool(tool, arguments)
            print(result.content[0].text.replace(str(home), "~") + "\n")  # type: ignore[union-attr]
            return result.structured_content or {}

        async def until_it_ends(job_id: str) -> dict[str, Any]:
            while True:
                found = await client.call_tool("wait_for_job", {"job_id": job_id, "timeout_s": 50})
                job = found.structured_content or {}
                if job["state"] not in {"queued", "starting", "running"}:
                    return await call("get_job", job_id=job_id)

        config: dict[str, Any] = {"base_model": "demo", "train_file": "demo:sft_train", "val_file": "demo:sft_val"}
        config |= {"num_steps": 120, "batch_size": 16, "max_cost_usd": 0.05}
        plan = await call("start_sft", overrides=config)
        await call("start_sft", overrides={**config, "num_steps": 150}, plan_id=plan["plan_id"])
        started = await call("start_sft", overrides=config, plan_id=plan["plan_id"])
        stopped = await until_it_ends(started["job_id"])
        await call("resume_job", job_id=started["job_id"], max_cost_usd=stopped["cost_usd"] / 2)
        await call("resume_job", job_id=started["job_id"], max_cost_usd=0.2)
        done = await until_it_ends(started["job_id"])
        print(f"planned ${plan['cost']['expected']:.5f}, metered ${done['cost_usd']:.5f}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        anyio.run(session, Path(folder))
