"""``python -m sota_ml_researcher.server`` is the same as ``ml-researcher``."""

import sys

from .cli import main

sys.exit(main())
