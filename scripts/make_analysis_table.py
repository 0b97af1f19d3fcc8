"""Write the table of docs/analysis.md anew: how many known faults analyze_run finds in synthetic runs.

Run it from the repository root after a change to a finding: ``python scripts/make_analysis_table.py``.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- table: made by scripts/make_analysis_table.py -->", "<!-- end of table -->"


def main() -> int:
    """Score every fault and every kind of healthy run; replace what stands between the two marks."""
    sys.path.insert(0, str(ROOT / "tests" / "support"))
    from analysis_scoring import score_faults, score_healthy, table

    page = ROOT / "docs" / "analysis.md"
    made = f"{BEGIN}\n\n{table(score_faults(), score_healthy())}\n\n{END}"
    text = page.read_text(encoding="utf-8")
    page.write_text(re.sub(f"{re.escape(BEGIN)}.*?{re.escape(END)}", made, text, flags=re.S), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
