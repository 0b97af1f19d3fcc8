"""Call every public method of the installed Tinker SDK, with every argument, against a live engine.

usage: python -m benchmarks.methods [--check] [--page docs/engine-methods.md]

Each method is called in its synchronous form (``.result()`` where it returns a future) and awaited. ``works`` means
both gave an answer; ``refused`` that both failed with one of the platform's own errors, for a method that cannot exist
without an organisation or a bill. Each argument that the plain call leaves out is tried once (`protocol_cases`), and so
are requests whose status is documented. Anything else is a gap: it is printed and the exit code is 1. With ``--check``
the page is compared, not written, and a difference is a failure too.
"""

from __future__ import annotations

import argparse
import asyncio
import inspect
import json
import os
import subprocess
import sys
import tempfile
import uuid
import warnings
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.models import write_model
from benchmarks.protocol_cases import INSTEAD_OF, REFUSED, STATUSES, untried, value_of

KEY = "tml-0123456789abcdef"
TOKENS = list(range(10, 24))
# Only what makes no sense without an organisation or an invoice may fail.
MAY_REFUSE = frozenset({"get_audit_log", "get_billing_usage"})
NOTES = {
    "get_console_url": "an address of the hosted console; made by the SDK without asking the engine",
    "copy_weights": "the machine's one project is called `local`",
    "assign_session_project": "the machine's one project is called `local`; any other is refused",
    "RestClient.whoami": "the machine's one user, `tml:organization_user:local`",
    "RestClient.export_session_trace": "a JSON trace that ui.perfetto.dev opens",
    "RestClient.get_current_checkpoint_storage_usage": "what the store holds, at a rate of 0",
    "TrainingClient.save_weights_external": "PEFT's format; `age_encryption_recipients` is refused with a sentence",
    "ServiceClient.create_custom_loss": "traced by the SDK, checked against an allow-list, run on the engine",
    "get_telemetry": "answered by the SDK; the engine drops what it is sent",
}


@dataclass
class Fixture:
    """What the calls need: clients, a checkpoint of each kind, and the engine's address."""

    url: str
    service: Any
    trainer: Any
    sampler: Any
    rest: Any
    state: str
    weights: str
    ended: str = ""
    numbered: str = ""

    def datum(self) -> Any:
        """A few tokens to train on."""
        from tinker import types

        targets = TOKENS[1:]
        return types.Datum(
            model_input=types.ModelInput.from_ints(TOKENS[:-1]),
            loss_fn_inputs={
                "target_tokens": types.TensorData(data=targets, dtype="int64", shape=[len(targets)]),
                "weights": types.TensorData(data=[1.0] * len(targets), dtype="float32", shape=[len(targets)]),
            },
        )

    def new_path(self) -> str:
        """A checkpoint that a call may spoil."""
        return self.trainer.save_weights_for_sampler(_name()).result().path

    def published_path(self) -> str:
        """A checkpoint that is public."""
        path = self.new_path()
        self.rest.publish_checkpoint_from_tinker_path(path).result()
        return path


def _name() -> str:
    return f"probe-{uuid.uuid4().hex[:8]}"


def _prompt() -> Any:
    from tinker import types

    return types.ModelInput.from_ints(TOKENS)


def _custom(_data: Any, logprobs: Any) -> Any:
    return -sum(one.sum() for one in logprobs), {}


def _traced_loss() -> Callable[..., Any]:
    """A new function each time: the SDK accepts each loss once per session."""
    factor = float(uuid.uuid4().int % 10_000)

    def loss(logprobs, weights):
        total = -(logprobs * weights).sum() * factor
        return total, {"custom/total:sum": total}

    return loss


def _arguments() -> dict[str, Callable[[Fixture], tuple[tuple[Any, ...], dict[str, Any]]]]:
    """Arguments of each method by name; methods without an entry take none."""
    from tinker import types

    ranks = {"logprobs": 1, "weights": 1}
    params = types.SamplingParams(max_tokens=4, seed=1, stop=[])

    def of(*args: Any, **kwargs: Any) -> Callable[[Fixture], tuple[tuple[Any, ...], dict[str, Any]]]:
        return lambda fixture: (tuple(a(fixture) if callable(a) else a for a in args), kwargs)

    def data(fixture: Fixture) -> Any:
        return [fixture.datum()]

    run = of(lambda f: f.state.removeprefix("tinker://").split("/")[0])
    state, weights, fresh = of(lambda f: f.state), of(lambda f: f.weights), of(lambda f: f.new_path())
    published = of(lambda f: f.published_path())
    session = of(lambda f: f.service.holder.get_session_id())
    return {
        "ServiceClient.copy_weights": state,
        "ServiceClient.create_custom_loss": lambda _: ((_traced_loss(), ranks), {}),
        "ServiceClient.create_lora_training_client": of("tiny", rank=2, seed=1),
        "ServiceClient.create_sampling_client": of(base_model="tiny"),
        "ServiceClient.create_training_client_from_state": state,
        "ServiceClient.create_training_client_from_state_with_optimizer": state,
        "ServiceClient.close": of("success"),
        "TrainingClient.create_sampling_client": weights,
        "TrainingClient.forward": of(data, "cross_entropy"),
        "TrainingClient.forward_backward": of(data, "cross_entropy"),
        "TrainingClient.forward_backward_custom": lambda f: (([f.datum()], _custom), {}),
        "TrainingClient.load_state": state,
        "TrainingClient.load_state_with_optimizer": state,
        "TrainingClient.optim_step": of(optim_params=types.AdamParams(learning_rate=1e-3)),
        "TrainingClient.save_state": of(lambda _: _name()),
        "TrainingClient.save_weights_external": of(lambda _: _name()),
        "TrainingClient.save_weights_for_sampler": of(lambda _: _name(), ttl_seconds=3600),
        "SamplingClient.compute_logprobs": of(lambda _: _prompt()),
        "SamplingClient.create": lambda f: ((f.service.holder,), {"base_model": "tiny"}),
        "SamplingClient.from_sampler_handle": lambda f: ((f.sampler.get_sampler_handle(),), {"api_key": KEY}),
        "SamplingClient.on_queue_state_change": lambda _: ((_queue_state(), None), {}),
        "SamplingClient.sample": of(lambda _: _prompt(), 2, params, include_prompt_logprobs=True),
        "RestClient.assign_session_project": lambda f: ((*session(f)[0], "local"), {}),
        "RestClient.copy_weights": lambda f: ((f.state, "local"), {}),
        "RestClient.delete_checkpoint": lambda f: (tuple(f.new_path().removeprefix("tinker://").split("/", 1)), {}),
        "RestClient.delete_checkpoint_from_tinker_path": fresh,
        "RestClient.export_session_trace": session,
        "RestClient.get_billing_usage": of("2026-07-13T00:00:00Z", "2026-07-14T00:00:00Z"),
        "RestClient.get_external_weights_urls": lambda f: (
            (f.trainer.save_weights_external(_name()).result().path,),
            {},
        ),
        "RestClient.get_sampler": lambda f: ((f.sampler._sampling_session_id,), {}),
        "RestClient.get_session": session,
        "RestClient.get_training_run": run,
        "RestClient.get_training_run_by_tinker_path": state,
        "RestClient.get_weights_info_by_tinker_path": state,
        "RestClient.list_checkpoints": run,
        "RestClient.publish_checkpoint_from_tinker_path": fresh,
        "RestClient.search_sessions": lambda _: ((types.SessionSearchRequest(),), {}),
        "RestClient.set_checkpoint_ttl_from_tinker_path": lambda f: ((f.new_path(), 7200), {}),
        "RestClient.unpublish_checkpoint_from_tinker_path": published,
    }


def _queue_state() -> Any:
    from tinker.lib.api_future_impl import QueueState

    return QueueState.ACTIVE


def public_methods() -> list[str]:
    """``Client.method`` of every public method and property of the four clients."""
    import tinker

    clients = (tinker.ServiceClient, tinker.TrainingClient, tinker.SamplingClient, tinker.RestClient)
    return [
        f"{client.__name__}.{name}"
        for client in clients
        for name, member in inspect.getmembers(client)
        if not name.startswith("_") and (callable(member) or isinstance(member, property))
    ]


def _invoke(fixture: Fixture, qualified: str, **changes: Any) -> Any:
    target, args, kwargs = _call(fixture, qualified)
    member = getattr(target, qualified.split(".")[1])
    return member(*args, **{**kwargs, **changes}) if callable(member) else member


def _call(fixture: Fixture, qualified: str) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """The client that has a method, and what to pass."""
    owner, name = qualified.split(".")
    targets = {"ServiceClient": fixture.service, "TrainingClient": fixture.trainer, "SamplingClient": fixture.sampler}
    target = targets.get(owner, fixture.rest)
    if name == "close":  # a client of its own: the others must live on
        target = _service(fixture.url)
        target.create_lora_training_client("tiny", rank=2).result()
    base = qualified.removesuffix("_async")
    args, kwargs = _arguments().get(base, lambda _: ((), {}))(fixture)
    return target, args, kwargs


def _sync(fixture: Fixture, qualified: str, **changes: Any) -> Any:
    made = _invoke(fixture, qualified, **changes)
    if inspect.isawaitable(made) and not hasattr(made, "result"):
        return asyncio.run(_awaited(made))
    return made.result() if hasattr(made, "result") and callable(made.result) else made


async def _awaited(made: Awaitable[Any]) -> Any:
    value = await made
    return await value if inspect.isawaitable(value) else value


def _async(fixture: Fixture, qualified: str) -> Any:
    if qualified.endswith("_async"):
        return _sync(fixture, qualified)
    made = _invoke(fixture, qualified)
    return asyncio.run(_awaited(made)) if inspect.isawaitable(made) else made


@dataclass(frozen=True)
class Outcome:
    """What a method did: ``works``, ``refused`` or ``gap``, and the error's name and words."""

    method: str
    state: str
    detail: str


def probe(fixture: Fixture, qualified: str) -> Outcome:
    """Call one method in both forms."""
    import tinker

    refusals: list[str] = []
    for call in (_sync, _async):
        try:
            call(fixture, qualified)
        except (tinker.APIStatusError, tinker.RequestFailedError) as error:
            body: Any = getattr(error, "body", None)
            words = body.get("detail") if isinstance(body, dict) else str(error)
            refusals.append(f"`{type(error).__name__}`: {words}")
        except Exception as error:  # whatever else it raises is what this program looks for
            return Outcome(qualified, "gap", f"{type(error).__name__}: {error}")
    if not refusals:
        return Outcome(qualified, "works", NOTES.get(qualified) or NOTES.get(qualified.split(".")[1], ""))
    allowed = qualified.split(".")[1].removesuffix("_async") in MAY_REFUSE and len(refusals) == 2
    return Outcome(qualified, "refused" if allowed else "gap", refusals[0])


def probe_arguments(fixture: Fixture, qualified: str) -> list[Outcome]:
    """Call a method once for each argument that its plain call leaves out, named ``Client.method(argument)``."""
    target, args, kwargs = _call(fixture, qualified)
    member = getattr(target, qualified.split(".")[1])
    return [_argument(fixture, qualified, name) for name in untried(member, args, kwargs)]


def _argument(fixture: Fixture, qualified: str, name: str) -> Outcome:
    import tinker

    what = f"{qualified}({name})"
    changes: dict[str, Any] = {}
    try:
        changes[name] = value_of(fixture, qualified, name)
        if (other := INSTEAD_OF.get(f"{qualified}.{name}")) is not None:
            changes[other] = None
        made = _sync(fixture, qualified, **changes)
        if name == "record_stability_info":  # the client is made, and each of its samples asks for it
            from tinker import types

            made.sample(_prompt(), 1, types.SamplingParams(max_tokens=2)).result()
    except (tinker.APIStatusError, tinker.RequestFailedError) as error:
        body: Any = getattr(error, "body", None)
        words = body.get("detail") if isinstance(body, dict) else _words(error)
        return Outcome(what, "refused" if name in REFUSED else "gap", f"`{type(error).__name__}`: {words}")
    except Exception as error:  # whatever else it raises is what this program looks for
        return Outcome(what, "gap", f"{type(error).__name__}: {error}")
    return Outcome(what, "gap" if name in REFUSED else "works", _shown(changes[name]))


def _words(error: Exception) -> str:
    """What the engine said in a failure that the SDK wraps."""
    return str(error).removeprefix("Request failed: ").partition(" for self.request_id=")[0]


def _shown(value: Any) -> str:
    plain = isinstance(value, str | int | bool | list | dict) and "probe-" not in str(value) and ":" not in str(value)
    return f"`{value!r}`" if plain else ""


def probe_statuses(fixture: Fixture) -> list[Outcome]:
    """Send the requests whose status is documented; ``state`` is the status."""
    session = _service(fixture.url)
    fixture.numbered = session.create_lora_training_client("tiny", rank=2).result().get_info().model_id
    fixture.ended = _service(fixture.url).holder.get_session_id()
    outcomes: list[Outcome] = []
    for case in STATUSES:
        status, words = case.call(fixture, KEY)
        state = str(status) if status == case.expected else "gap"
        outcomes.append(
            Outcome(case.what, state, words if state != "gap" else f"{status}, not {case.expected}: {words}")
        )
    return outcomes


def _service(url: str) -> Any:
    import tinker

    return tinker.ServiceClient(base_url=url, api_key=KEY, project_id="local")


def start_engine(model: Path, store: Path, *extra: str, name: str = "tiny") -> tuple[subprocess.Popen[str], str]:
    """An engine process that serves ``model`` as ``name``, and its address."""
    command = [sys.executable, "-m", "sota_ml_researcher.engine", "--port", "0", "--model", f"{name}={model}"]
    environment = {**os.environ, "ML_RESEARCHER_ENGINE_KEY": KEY}
    process = subprocess.Popen(
        [*command, "--store", str(store), *extra], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None
    return process, process.stdout.readline().removeprefix("listening on ").strip()


def _fixture(url: str) -> Fixture:
    import tinker

    service = _service(url)
    trainer = service.create_lora_training_client("tiny", rank=2, seed=1).result()
    state = trainer.save_state("state").result().path
    weights = trainer.save_weights_for_sampler("weights").result().path
    # The tokenizer is found by the model's folder, as it is by a hub id.
    sampler = service.create_sampling_client(base_model=trainer.get_info().model_data.tokenizer_id).result()
    rest = tinker.RestClient(base_url=url, api_key=KEY)
    return Fixture(url, service, trainer, sampler, rest, state, weights)


def run_probe() -> tuple[list[Outcome], list[Outcome], list[Outcome]]:
    """Every method against an engine of its own, then every argument, then the statuses."""
    os.environ["TINKER_TELEMETRY"] = "0"
    os.environ["TINKER_API_KEY"] = KEY
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        model = write_model(Path(folder) / "model", "tiny")
        process, url = start_engine(model, Path(folder) / "store", "--threads", "1")
        try:
            fixture = _fixture(url)
            methods = public_methods()
            arguments = [each for m in methods if not m.endswith("_async") for each in probe_arguments(fixture, m)]
            return [probe(fixture, method) for method in methods], arguments, probe_statuses(fixture)
        finally:
            process.terminate()
            process.wait(timeout=60)


def page(outcomes: list[Outcome], arguments: list[Outcome], statuses: list[Outcome]) -> str:
    """The documentation page."""
    works = sum(outcome.state == "works" for outcome in outcomes)
    refused = sum(outcome.state == "refused" for outcome in outcomes)
    lines = [
        "# The engine and the Tinker SDK, method by method",
        "",
        f"Written by `python -m benchmarks.methods` with tinker {version('tinker')}; do not edit. Each method was",
        "called against a live engine in its synchronous form and awaited.",
        "",
        f"{len(outcomes)} public methods: {works} work; {refused} need an organisation or a bill. Of {len(arguments)}",
        f"[arguments](#arguments) {sum(each.state == 'works' for each in arguments)} are honoured, the others refused.",
        "What the engine answers to what it cannot take is under [statuses](#statuses).",
    ]
    for client in dict.fromkeys(outcome.method.split(".")[0] for outcome in outcomes):
        lines += ["", f"## {client}", "", "| method | state | note |", "|---|---|---|"]
        lines += [
            f"| `{outcome.method.split('.')[1]}` | {outcome.state} | {outcome.detail} |"
            for outcome in outcomes
            if outcome.method.startswith(f"{client}.")
        ]
    lines += ["", "## Arguments", "", *_ARGUMENTS, "", "| method | argument | state | note |", "|---|---|---|---|"]
    for each in arguments:
        method, _, argument = each.method.removesuffix(")").partition("(")
        lines.append(f"| `{method}` | `{argument}` | {each.state} | {each.detail} |")
    lines += ["", "## Statuses", "", *_STATUSES, "", "| request | status | what is said |", "|---|---|---|"]
    lines += [f"| {each.method} | {each.state} | {each.detail} |" for each in statuses]
    return "\n".join(lines) + "\n"


_ARGUMENTS = (
    "Each argument that the calls above leave out, tried once. Without `stop` a sample ends at the model's own end of",
    "text or of a turn; `[]` turns that off. `load_state` works in mid-run too, in the order of the requests: it",
    "replaces the weights, and the optimizer's moments start anew unless they are loaded as well.",
)
_STATUSES = (
    "A sentence comes with every refusal, as `detail`. The SDK takes 409 for a lock and asks again for five",
    "minutes before it raises. A client that is silent for 45 s (`--queue-timeout`) loses the samples it has queued:",
    "it is told 410 when it asks for them, and the SDK then sends them again. Its training requests wait for it, and",
    "its adapters are freed after 900 s (`--session-timeout`).",
)


def main() -> int:
    """Probe, then write or check the page."""
    parser = argparse.ArgumentParser(description="Call every public method of the Tinker SDK against a live engine.")
    parser.add_argument("--page", type=Path, default=Path(__file__).parents[1] / "docs" / "engine-methods.md")
    parser.add_argument("--check", action="store_true", help="compare with the page instead of writing it")
    options = parser.parse_args()
    outcomes, arguments, statuses = run_probe()
    gaps = [outcome for outcome in [*outcomes, *arguments, *statuses] if outcome.state == "gap"]
    for gap in gaps:
        print(json.dumps({"gap": gap.method, "detail": gap.detail}))
    text = page(outcomes, arguments, statuses)
    if options.check:
        stale = not options.page.is_file() or options.page.read_text() != text
        if stale:
            print(f"{options.page.name} is stale: run python -m benchmarks.methods")
        return int(bool(gaps) or stale)
    options.page.write_text(text)
    print(f"{len(outcomes)} methods, {len(gaps)} gaps: {options.page}")
    return int(bool(gaps))


if __name__ == "__main__":
    # The SDK's threads would keep the interpreter for a while.
    sys.stdout.flush()
    code = main()
    sys.stdout.flush()
    os._exit(code)
