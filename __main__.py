"""``python -m sota_ml_researcher`` is the same as ``ml-researcher``."""

import sys

from .server.cli import main

sys.exit(main())
