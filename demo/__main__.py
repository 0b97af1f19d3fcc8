"""``ml-researcher demo``: the whole path, from an empty machine to a finished fine-tune, through a real MCP client."""

from __future__ import annotations

import sys

import anyio
import click

from ..core.errors import ResearcherError
from .run import Demo, show_result


def _innermost(error: BaseException) -> BaseException:
    inner = getattr(error, "exceptions", None)
    return _innermost(inner[0]) if inner else error


@click.command()
@click.option("--quick", is_flag=True, help="Only a short fine-tuning and its evaluation: under a minute.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
def main(quick: bool, as_json: bool) -> None:
    """Run the demo; exit code 0 if every target was met."""
    demo = Demo(quiet=as_json, quick=quick)
    try:
        result = anyio.run(demo.run)
    except ResearcherError as error:
        sys.exit(_failed(error))
    except BaseExceptionGroup as group:  # the client's task group wraps what its body raised
        error = _innermost(group)
        if isinstance(error, ResearcherError):
            sys.exit(_failed(error))
        raise
    except KeyboardInterrupt:
        print("\nStopped. The job was asked to save a checkpoint and end.", file=sys.stderr)
        sys.exit(130)
    sys.exit(show_result(result, as_json=as_json))


def _failed(error: ResearcherError) -> int:
    print(f"ml-researcher demo: {error}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    main(prog_name="ml-researcher demo")
