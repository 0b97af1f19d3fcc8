"""Rewrite the tables in docs/analysis.md and the rule that sums them up: what analyze_run finds where a fault is known.

Run it from the repository root after a change to a finding: ``python scripts/make_analysis_table.py``. It reads the
logs of real runs under tests/analysis/logs and draws synthetic ones, and prints what it wrote.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCS, RULES = ROOT / "docs" / "analysis.md", ROOT / "doctrine" / "rules.yaml"


def put(page: Path, name: str, text: str) -> None:
    """Replace what stands between the two marks of a table."""
    begin, end = f"<!-- {name}: made by scripts/make_analysis_table.py -->", "<!-- end of table -->"
    made = f"{begin}\n\n{text}\n\n{end}"
    content = page.read_text(encoding="utf-8")
    new, found = re.subn(f"{re.escape(begin)}.*?{re.escape(end)}", lambda _: made, content, flags=re.S)
    if not found:
        raise SystemExit(f"{page}: no mark {begin}")
    page.write_text(new, encoding="utf-8")
    print(made)


def main() -> int:
    """Score every log, real and synthetic; write both tables and the rule ``diagnosis.reliability``."""
    sys.path.insert(0, str(ROOT / "tests" / "support"))
    from analysis_real_logs import faulty, real_table, sound, told
    from analysis_scoring import score_faults, score_healthy, table

    logs = told()
    put(DOCS, "real runs", real_table(logs))
    put(DOCS, "table", table(score_faults(), score_healthy()))
    tellable = [t for t in faulty(logs, held_out=True) if not t.cannot]
    healthy = sound(logs, held_out=True)
    recall = sum(t.right for t in tellable) / len(tellable)
    alarms = sum(not t.right for t in healthy) / len(healthy)
    value = (
        f"value: {{recall: {recall:.2f}, false_alarms: {alarms:.2f}, faults: {len(tellable)}, healthy: {len(healthy)}}}"
    )
    rules = RULES.read_text(encoding="utf-8")
    new, found = re.subn(r"(diagnosis\.reliability:\n  claim: .*\n  )value: .*", rf"\g<1>{value}", rules)
    if not found:
        raise SystemExit(f"{RULES}: no rule diagnosis.reliability with a claim and a value")
    RULES.write_text(new, encoding="utf-8")
    print(value)
    return 0


if __name__ == "__main__":
    sys.exit(main())
