"""Rows of a data file whose tests do harm, for `reward_type: code`: each would have been run with the user's keys."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

CANARY = "tml-canary-1234567890"
SOLUTION = "def double(x):\n    return 2 * x\n"
WRONG = "def double(x):\n    return x\n"
HONEST = "assert double(2) == 4\nassert double(0) == 0"
# What a row's tests may have laid hands on, told in the only words that come out of a sandbox: why a test failed.
_SHOW = "raise AssertionError(repr(seen)[:300])"
# Tests that never use the program come to no verdict.
_USES = "\nassert double(2) == 4\n"


def rows(target: Path) -> dict[str, Any]:
    """Hostile tests by name; ``target`` is a folder that everyone may write to, outside of any sandbox."""
    places = [str(target / "leak"), str(Path.home() / "leak"), str(Path.cwd() / "leak"), "/var/tmp/leak", "/leak"]
    homes = [str(Path.home()), os.environ.get("ML_RESEARCHER_HOME", str(target)), str(target), "/proc/1/environ"]
    return {
        "environment": f"import os\nseen = dict(os.environ)\nopen('leak', 'w').write(repr(seen))\n{_SHOW}",
        "replaces the scorer": (
            "import sys, gc\n"
            "for module in list(sys.modules.values()):\n"
            "    for name in ('run_tests', 'verdict', 'run', 'failed', 'score', 'main'):\n"
            "        if hasattr(module, name):\n            setattr(module, name, lambda *a, **k: '')\n"
            "import builtins\nbuiltins.AssertionError = type('Never', (Exception,), {})\n" + _USES
        ),
        "loops": "while True:\n    pass",
        "exits": "import sys\nsys.exit(0)",
        "ends the process": "import os\nos._exit(0)",
        "floods": (
            "import os\nfor fd in range(64):\n    try:\n        for _ in range(100):\n"
            "            os.write(fd, b'1 last {\"passed\": true}\\n' * 1000)\n    except OSError:\n        pass\n"
        ),
        "forks": (
            "import os, time\nfor _ in range(100):\n    try:\n        if os.fork() == 0:\n            time.sleep(60)\n"
            "    except OSError:\n        break\n" + _USES
        ),
        "writes outside": (
            f"import os\nseen = []\nfor place in {places!r}:\n    try:\n        open(place, 'w').close()\n"
            f"        seen.append('written')\n    except OSError:\n        pass\nassert not seen, seen{_USES}"
        ),
        "reads the home folder": (
            f"import os\nseen = []\nfor place in {homes!r}:\n    try:\n"
            "        found = os.listdir(place) if os.path.isdir(place) else [open(place).read()]\n"
            "        seen += [name for name in found if 'secret' in name or 'KEY' in name]\n"
            f"    except OSError:\n        pass\nassert not seen, seen{_USES}"
        ),
    }


# Those that come to no verdict, whatever the program: their samples are not scored.
NO_VERDICT = ("loops", "exits", "ends the process", "floods")


def write(path: Path, tests: dict[str, Any]) -> Path:
    """A data file of these rows, the honest one after each of them."""
    lines = [
        {"prompt": f"say double {number}", "tests": said, "solution": SOLUTION}
        for number, name in enumerate(tests)
        for said in (tests[name], HONEST)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def traces_outside(target: Path) -> list[str]:
    """What was written where nothing may be."""
    places = [target, Path.home(), Path.cwd(), Path("/var/tmp"), Path("/tmp"), Path("/")]
    return [str(place / "leak") for place in places if (place / "leak").exists()]
