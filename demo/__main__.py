"""``ml-researcher demo``: the whole path, from an empty machine to a finished fine-tune, through a real MCP client."""

from __future__ import annotations

import sys

import anyio
import click

from ..core.errors import ResearcherError
from ..models.model_ref import DEMO_NAME
from ..models.smollm2 import SMOLLM2_NAME
from .first_model import FirstModel, show_first_model
from .run import Demo, show_result


def _innermost(error: BaseException) -> BaseException:
    inner = getattr(error, "exceptions", None)
    return _innermost(inner[0]) if inner else error


@click.command()
@click.option("--quick", is_flag=True, help="Only a short fine-tuning and its evaluation: under a minute.")
@click.option("--model", type=click.Choice([DEMO_NAME, SMOLLM2_NAME]), default=DEMO_NAME, help="Which model learns.")
@click.option("--seed", type=click.IntRange(0), default=0, help="With smollm2: of training and sampling.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
def main(quick: bool, model: str, seed: int, as_json: bool) -> None:
    """Run the demo; exit code 0 if every target was met."""
    if quick and model != DEMO_NAME:
        raise click.UsageError("--quick is for the packaged model alone")
    if seed and model == DEMO_NAME:
        raise click.UsageError("--seed goes with --model smollm2")
    try:
        if model == SMOLLM2_NAME:
            first = FirstModel(quiet=as_json, seed=seed)
            first.prepare()
            code = show_first_model(anyio.run(first.run), as_json=as_json)
        else:
            code = show_result(anyio.run(Demo(quiet=as_json, quick=quick).run), as_json=as_json)
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
    sys.exit(code)


def _failed(error: ResearcherError) -> int:
    print(f"ml-researcher demo: {error}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    main(prog_name="ml-researcher demo")
