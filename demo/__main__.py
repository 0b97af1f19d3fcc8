"""``ml-researcher demo``: the whole path, from an empty machine to a finished fine-tune, through a real MCP client."""

from __future__ import annotations

import argparse
import sys

import anyio

from sota_ml_researcher.core.errors import ResearcherError
from sota_ml_researcher.demo.run import Demo, show_result


def main() -> int:
    """Run the demo; exit code 0 when every target was met."""
    parser = argparse.ArgumentParser(prog="ml-researcher demo")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    options = parser.parse_args()
    demo = Demo(quiet=options.json)
    try:
        result = anyio.run(demo.run)
    except ResearcherError as error:
        print(f"ml-researcher demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped. The job was asked to save a checkpoint and end.", file=sys.stderr)
        return 130
    return show_result(result, as_json=options.json)


if __name__ == "__main__":
    sys.exit(main())
