"""What the engine computes once for several: shared prefixes, a kept forward pass, a batch that others join."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from engine_reference import FP32, THROUGH_TRANSFORMERS, trained

from sota_ml_researcher.engine.compute import sampling
from sota_ml_researcher.engine.compute.model import LoadedModel, load_model
from sota_ml_researcher.engine.compute.prefix_trees import lay_out, plan_trees
from sota_ml_researcher.engine.interface import (
    AdamSettings,
    LoraSpec,
    OutOfMemoryError,
    SampleAsk,
    SampleOutput,
    SampleSettings,
    TrainItem,
)
from sota_ml_researcher.engine.service.base_models import BaseModels
from sota_ml_researcher.engine.service.futures import Promise
from sota_ml_researcher.engine.service.sample_runner import SampleJob, SampleRunner
from sota_ml_researcher.engine.service.scheduler import Joint, Work
from sota_ml_researcher.engine.service.state import SamplingSession
from sota_ml_researcher.engine.service.store import Store

PACKED = ["llama", "qwen2", "qwen3", "gemma", "phi3", "mistral"]
TinyModel = Callable[[str], Path]


def _item(tokens: Any) -> TrainItem:
    weights = np.linspace(-1.0, 1.0, len(tokens) - 1, dtype=np.float32)
    return TrainItem(tokens[:-1], {"target_tokens": tokens[1:], "weights": weights})


def _sequences() -> list[Any]:
    """Two groups that share a beginning, of three and of two, and two sequences that stand alone, shuffled."""
    rng = np.random.default_rng(0)
    draw = lambda count: rng.integers(0, 96, count)  # noqa: E731
    first, second = draw(24), draw(31)
    grouped = [np.concatenate([first, draw(n)]) for n in (3, 7, 5)] + [
        np.concatenate([second, draw(n)]) for n in (4, 9)
    ]
    every = [*grouped, draw(12), draw(40)]
    return [every[place] for place in rng.permutation(len(every))]


def test_sequences_are_grouped_by_their_beginning_where_that_is_cheaper() -> None:
    sequences = _sequences()
    trees = plan_trees(sequences, 512, 1024)
    assert sorted(len(tree.members) for tree in trees) == [1, 1, 2, 3]
    tokens, positions, branches, places = lay_out(sequences, trees)
    assert len(tokens) == sum(tree.length for tree in trees) < sum(map(len, sequences))
    members = [member for tree in trees for member in tree.members]
    for member, where in zip(members, places, strict=True):
        assert tokens[where].tolist() == sequences[member].tolist()
        assert positions[where].tolist() == list(range(len(where)))
        assert len(set(branches[where].tolist()) - {0}) == 1
    long = np.arange(500)
    forked = [np.concatenate([long[:20], long + shift]) for shift in (0, 1)]
    assert len(plan_trees(forked, 128, 4096)) == 2  # long branches on a short prefix cost more than they save
    assert len(plan_trees(sequences, 512, 30)) == len(sequences)


def test_equal_sequences_share_all_but_their_last_token() -> None:
    twice = [np.arange(30), np.arange(30)]
    (tree,) = plan_trees(twice, 512, 1024)
    assert (tree.prefix, tree.length) == (29, 31)


@pytest.mark.parametrize("family", PACKED)
def test_shared_prefixes_change_no_logprob_and_no_gradient(family: str, tiny_model: TinyModel) -> None:
    base, spec = str(tiny_model(family)), LoraSpec(rank=3, seed=2)
    fast, plain = load_model("fast", base, FP32), load_model("plain", base, THROUGH_TRANSFORMERS)
    items = [_item(tokens) for tokens in _sequences()]
    hidden_size = fast._backbone.head.weight_VD.shape[1]
    assert any(tree.prefix for tree in plan_trees([item.tokens_T for item in items], hidden_size, 1024))
    first, second = trained(fast, spec), trained(plain, spec)
    ours = first.forward_backward(items, "cross_entropy", None, backward=True)
    theirs = second.forward_backward(items, "cross_entropy", None, backward=True)
    for mine, other in zip(ours.outputs, theirs.outputs, strict=True):
        np.testing.assert_allclose(mine["logprobs"], other["logprobs"], atol=1e-4)
    np.testing.assert_allclose(first._grad_P.numpy(), second._grad_P.numpy(), atol=2e-4, rtol=2e-3)


@pytest.mark.parametrize("family", ["qwen3", "gemma2"])
def test_a_backward_pass_uses_the_forward_pass_before_it(
    family: str, tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model("m", str(tiny_model(family)), FP32)
    items = [_item(tokens) for tokens in _sequences()]
    direct, twice = (trained(model, LoraSpec(rank=3, seed=2)) for _ in range(2))
    expected = direct.forward_backward(items, "cross_entropy", None, backward=True)
    calls: list[int] = []
    inner = model._backbone.hidden
    monkeypatch.setattr(model._backbone, "hidden", lambda *given: (calls.append(1), inner(*given))[1])

    twice.forward_backward(items, "cross_entropy", None, backward=False)
    result = twice.forward_backward(items, "cross_entropy", None, backward=True)
    assert len(calls) == 1
    assert result.metrics == expected.metrics
    assert (twice._grad_P == direct._grad_P).all()

    twice.forward_backward(items, "cross_entropy", None, backward=False)
    twice.optim_step(AdamSettings(0.01))
    fresh = twice.forward_backward(items, "cross_entropy", None, backward=True)
    assert len(calls) == 3, "the weights have changed: what was kept is of the old ones"
    assert fresh.metrics != expected.metrics
    other = trained(model, LoraSpec(rank=3, seed=5))
    calls.clear()
    twice.forward_backward(items, "cross_entropy", None, backward=False)
    other.forward_backward(items, "cross_entropy", None, backward=True)
    assert len(calls) == 2, "another adapter's forward pass is not its own"


def _asks(weights: Any) -> list[SampleAsk]:
    rng = np.random.default_rng(3)
    shared = rng.integers(0, 96, 11)
    prompts = [shared, rng.integers(0, 96, 4), shared, rng.integers(0, 96, 17), rng.integers(0, 96, 4)]
    settings = [
        SampleSettings(prompt, num_samples=samples, max_tokens=tokens, seed=seed, prompt_logprobs=seed == 2)
        for seed, (prompt, samples, tokens) in enumerate(zip(prompts, (3, 1, 2, 4, 2), (12, 20, 1, 7, 16), strict=True))
    ]
    return [SampleAsk(index, one, weights) for index, one in enumerate(settings)]


@pytest.mark.parametrize("family", [*PACKED, "gpt2"])
def test_a_request_that_joins_a_batch_gets_what_it_would_get_alone(family: str, tiny_model: TinyModel) -> None:
    model = load_model("m", str(tiny_model(family)), FP32)
    asks = _asks(trained(model, LoraSpec(rank=3, seed=2)).weights())
    alone = [model.sample([ask.request], [ask.weights])[0] for ask in asks]
    together: dict[int, SampleOutput] = {}
    steps = iter([[], [], asks[1:2], [], asks[2:4], [], [], asks[4:]])
    model.sample_stream(asks[:1], lambda: next(steps, []), together.__setitem__)
    for index, expected in enumerate(alone):
        for one, other in zip(together[index].continuations, expected.continuations, strict=True):
            assert one.tokens_T.tolist() == other.tokens_T.tolist()
            assert one.stop_reason == other.stop_reason
            np.testing.assert_allclose(one.logprobs_T, other.logprobs_T, atol=1e-4)
    assert together[2].prompt_logprobs_T is not None
    np.testing.assert_allclose(together[2].prompt_logprobs_T, alone[2].prompt_logprobs_T, atol=1e-4)


def test_a_request_is_finished_before_longer_ones_of_its_batch(tiny_model: TinyModel) -> None:
    model = load_model("m", str(tiny_model("qwen3")), FP32)
    order: list[int] = []
    model.sample_stream(_asks(None), list, lambda key, _: order.append(key))
    assert order == [2, 3, 0, 4, 1]


def test_what_does_not_fit_the_cache_waits_and_other_weights_wait_for_the_end(tiny_model: TinyModel) -> None:
    model = load_model("m", str(tiny_model("qwen3")), FP32)
    model._sampler._cache_tokens = 60
    rows: list[int] = []
    inner = model._backbone.step
    model._backbone.step = lambda state, tokens, lora: (rows.append(len(tokens)), inner(state, tokens, lora))[1]
    asks = _asks(None)
    adapted = SampleAsk("adapted", asks[0].request, trained(model, LoraSpec(rank=2, seed=1)).weights())
    arrivals: list[Sequence[SampleAsk]] = [[adapted]]
    outputs: dict[Any, SampleOutput] = {}
    model.sample_stream(asks, lambda: arrivals.pop() if arrivals else [], outputs.__setitem__)
    assert set(outputs) == {0, 1, 2, 3, 4, "adapted"}
    assert max(rows) <= 6, "never more rows than the cache has places for"


def test_requests_of_two_adapters_that_came_in_turn_are_two_batches(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model("m", str(tiny_model("qwen3")), FP32)
    first, second = (trained(model, LoraSpec(rank=2, seed=seed)).weights() for seed in (1, 2))
    asks = [SampleAsk(ask.key, ask.request, (first, second)[ask.key % 2]) for ask in _asks(None)]
    batches: list[Any] = []
    kind = sampling.Batch
    monkeypatch.setattr(sampling, "Batch", lambda *given: batches.append(given) or kind(*given))
    outputs: dict[int, SampleOutput] = {}
    model.sample_stream(asks, list, outputs.__setitem__)
    assert set(outputs) == {0, 1, 2, 3, 4}
    assert len(batches) == 2


def test_memory_that_runs_out_is_said_in_words(tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model("m", str(tiny_model("qwen3")), FP32)

    def fail(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(model._backbone, "prefill", fail)
    with pytest.raises(OutOfMemoryError, match="send less at a time"):
        model.sample_stream(_asks(None), list, lambda *_: None)


def _run_jobs(model: LoadedModel, jobs: Sequence[SampleJob]) -> dict[int, Any]:
    """What each job was answered, by its place."""
    models = BaseModels({"m": ""}, any_local=False, options=FP32, load=lambda *_: model)
    outcomes: dict[int, Any] = {}
    works = [Work(Promise(str(place)), payload=job) for place, job in enumerate(jobs)]
    joint = Joint(works, lambda work, outcome, _: outcomes.__setitem__(int(work.promise.request_id), outcome))
    SampleRunner(cast("Store", None), models, frozenset).run(joint)
    return outcomes


def test_a_result_that_cannot_be_written_fails_alone(tiny_model: TinyModel) -> None:
    def broken(_: SampleOutput) -> bytes:
        raise ValueError("no words")

    sampler = SamplingSession("s", "session", "m")
    jobs = [SampleJob(sampler, ask.request) for ask in _asks(None)]
    jobs[1] = SampleJob(sampler, jobs[1].settings, encode=broken)
    outcomes = _run_jobs(load_model("m", str(tiny_model("qwen3")), FP32), jobs)
    assert sorted(outcomes) == [0, 1, 2, 3, 4]
    assert [place for place, outcome in outcomes.items() if isinstance(outcome, Exception)] == [1]


def test_requests_that_do_not_fit_together_are_tried_alone(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model("m", str(tiny_model("qwen3")), FP32)
    inner = model._backbone.prefill

    def small(prompts: Sequence[Any], *given: Any) -> Any:
        if len(prompts) > 1 or len(prompts[0]) == 17:
            raise MemoryError
        return inner(prompts, *given)

    monkeypatch.setattr(model._backbone, "prefill", small)
    outcomes = _run_jobs(model, [SampleJob(SamplingSession("s", "session", "m"), ask.request) for ask in _asks(None)])
    assert sorted(outcomes) == [0, 1, 2, 3, 4]
    assert [place for place, outcome in outcomes.items() if isinstance(outcome, OutOfMemoryError)] == [3]
