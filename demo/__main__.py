"""``ml-researcher demo``: the whole path, from an empty machine to a finished fine-tune, through a real MCP client."""

from __future__ import annotations

import argparse
import sys

import anyio

from ..core.errors import ResearcherError
from .run import Demo, show_result


def _innermost(error: BaseException) -> BaseException:
    inner = getattr(error, "exceptions", None)
    return _innermost(inner[0]) if inner else error


def main() -> int:
    """Run the demo; exit code 0 when every target was met."""
    parser = argparse.ArgumentParser(prog="ml-researcher demo")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    options = parser.parse_args()
    demo = Demo(quiet=options.json)
    try:
        result = anyio.run(demo.run)
    except ResearcherError as error:
        return _failed(error)
    except BaseExceptionGroup as group:  # the client's task group wraps what its body raised
        error = _innermost(group)
        if isinstance(error, ResearcherError):
            return _failed(error)
        raise
    except KeyboardInterrupt:
        print("\nStopped. The job was asked to save a checkpoint and end.", file=sys.stderr)
        return 130
    return show_result(result, as_json=options.json)


def _failed(error: ResearcherError) -> int:
    print(f"ml-researcher demo: {error}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
