"""``python -m sota_ml_researcher.engine`` is the same as ``ml-researcher engine``."""

import sys

from sota_ml_researcher.engine.cli import main

sys.exit(main())
