"""A session with prices through a real MCP client: plan, confirmation, meter, alert, stop at the cap, resume.

The embedded engine is given prices, so every step is the one hosted training takes.
``python scripts/spending_session.py`` prints it; docs/spending.md shows the output.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import anyio
from client_session import printed_session

PRICES = {"backends": {"embedded": {"models": {"demo": {"train": 1.0, "prefill": 0.5, "sample": 2.0}}}}}


async def session(home: Path) -> None:
    """Run it, with everything under ``home``."""
    prices = home / "my-prices.yaml"
    prices.write_text(json.dumps(PRICES), encoding="utf-8")
    environment = {"ML_RESEARCHER_PRICES": str(prices), "ML_RESEARCHER_HOME": str(home)}
    async with printed_session(home, environment) as shown:
        config: dict[str, Any] = {"base_model": "demo", "train_file": "demo:sft_train", "val_file": "demo:sft_val"}
        config |= {"num_steps": 120, "batch_size": 16, "max_cost_usd": 0.05}
        plan = await shown.call("start_sft", overrides=config)
        await shown.call("start_sft", overrides={**config, "num_steps": 150}, plan_id=plan["plan_id"])
        started = await shown.call("start_sft", overrides=config, plan_id=plan["plan_id"])
        stopped = await shown.ended(started["job_id"])
        await shown.call("resume_job", job_id=started["job_id"], max_cost_usd=stopped["cost_usd"] / 2)
        await shown.call("resume_job", job_id=started["job_id"], max_cost_usd=0.2)
        done = await shown.ended(started["job_id"])
        print(f"planned ${plan['cost']['expected']:.5f}, metered ${done['cost_usd']:.5f}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        anyio.run(session, Path(folder))
