"""What sampling promises: seeds, cuts, stops and log-probabilities, on tiny random weights."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_reference import FP32, trained
from transformers import AutoModelForCausalLM

from sota_ml_researcher.engine.compute.model import LoadedModel, load_model
from sota_ml_researcher.engine.interface import LoadOptions, LoraSpec, RequestRejectedError, SampleSettings

PROMPT = np.array([5, 6, 7, 8])


@pytest.fixture(scope="module")
def tiny(tiny_model: Callable[[str], Path]) -> LoadedModel:
    return load_model("m", str(tiny_model("qwen3")), FP32)


def sample(model: LoadedModel, **settings: Any):
    (output,) = model.sample([SampleSettings(PROMPT, **{"max_tokens": 8, "seed": 1} | settings)], [None])
    return output


def tokens(output: Any) -> list[list[int]]:
    return [one.tokens_T.tolist() for one in output.continuations]


def test_samples_of_one_seed_differ_from_each_other_and_repeat(tiny: LoadedModel) -> None:
    first, again = tokens(sample(tiny, num_samples=6)), tokens(sample(tiny, num_samples=6))
    assert first == again
    assert len({tuple(one) for one in first}) == 6
    assert tokens(sample(tiny, num_samples=6, seed=2)) != first
    assert tokens(sample(tiny, num_samples=6, seed=None)) != tokens(sample(tiny, num_samples=6, seed=None))


def test_what_else_is_in_the_batch_does_not_change_a_seeded_sample(tiny: LoadedModel) -> None:
    alone = tokens(sample(tiny, num_samples=2))
    request = SampleSettings(PROMPT, max_tokens=8, seed=1, num_samples=2)
    others = [SampleSettings(np.arange(9) + i, max_tokens=5, seed=i, num_samples=3) for i in range(4)]
    outputs = tiny.sample([*others[:2], request, *others[2:]], [None] * 5)
    assert tokens(outputs[2]) == alone


def test_greedy_sampling_equals_the_models_own_argmax(tiny: LoadedModel, tiny_model: Callable[[str], Path]) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model("qwen3"), dtype=torch.float32)
    sequence = PROMPT.tolist()
    for _ in range(8):
        sequence.append(int(model(input_ids=torch.tensor([sequence])).logits[0, -1].argmax()))
    for settings in ({"temperature": 0.0}, {"top_k": 1}, {"top_p": 1e-6}):
        assert tokens(sample(tiny, **settings)) == [sequence[4:]], settings


@pytest.mark.parametrize(("temperature", "top_k", "top_p"), [(1.0, -1, 1.0), (0.7, 5, 1.0), (1.5, -1, 0.6)])
def test_tokens_are_drawn_from_the_distribution_that_was_asked_for(
    temperature: float, top_k: int, top_p: float, tiny: LoadedModel, tiny_model: Callable[[str], Path]
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model("qwen3"), dtype=torch.float32)
    logits = model(input_ids=torch.from_numpy(PROMPT)[None]).logits[0, -1].detach().double()
    expected = torch.softmax(logits / temperature, -1)
    order = expected.argsort(descending=True)
    keep = order[: top_k if top_k > 0 else len(order)]
    mass = expected[keep].cumsum(0) / expected[keep].sum()
    keep = keep[(mass - expected[keep] / expected[keep].sum()) < top_p]
    wanted = torch.zeros_like(expected)
    wanted[keep] = expected[keep] / expected[keep].sum()
    draws = 4000
    output = sample(tiny, num_samples=draws, max_tokens=1, temperature=temperature, top_k=top_k, top_p=top_p)
    counts = Counter(one[0] for one in tokens(output))
    assert set(counts) <= set(keep.tolist())
    for token in keep[:8].tolist():
        p = float(wanted[token])
        assert abs(counts[token] / draws - p) < 5 * np.sqrt(p * (1 - p) / draws)
    logprobs = torch.log_softmax(logits, -1)
    for one in output.continuations[:50]:  # those of the model itself, whatever the temperature and the cuts
        assert one.logprobs_T[0] == pytest.approx(float(logprobs[one.tokens_T[0]]), abs=1e-4)


def test_stops_end_a_sample_where_they_appear(tiny: LoadedModel) -> None:
    (free,) = tokens(sample(tiny, max_tokens=20))
    by_token = sample(tiny, max_tokens=20, stop_tokens=frozenset({free[5]})).continuations[0]
    cut = free.index(free[5]) + 1
    assert (by_token.tokens_T.tolist(), by_token.stop_reason) == (free[:cut], "stop")
    text = tiny.tokenizer.decode(free[2:4])
    by_string = sample(tiny, max_tokens=20, stop_strings=(text,)).continuations[0]
    assert (by_string.tokens_T.tolist(), by_string.stop_reason) == (free[:4], "stop")
    assert sample(tiny, max_tokens=3).continuations[0].stop_reason == "length"


def test_top_candidates_and_prompt_scores_are_the_models(tiny: LoadedModel, tiny_model: Callable[[str], Path]) -> None:
    output = sample(tiny, topk_sample_logprobs=3, topk_prompt_logprobs=2, prompt_logprobs=True, temperature=0.0)
    one = output.continuations[0]
    whole = np.concatenate([PROMPT, one.tokens_T])
    model = AutoModelForCausalLM.from_pretrained(tiny_model("qwen3"), dtype=torch.float32)
    logprobs = torch.log_softmax(model(input_ids=torch.from_numpy(whole)[None]).logits[0], -1).detach()
    best = logprobs.topk(3, -1)
    np.testing.assert_allclose(one.topk_logprobs_TK, best.values[3:-1].numpy(), atol=1e-4)
    np.testing.assert_array_equal(one.topk_tokens_TK[:, 0], one.tokens_T)
    np.testing.assert_allclose(output.topk_prompt_logprobs_TK[1:], best.values[:3, :2].numpy(), atol=1e-4)
    scored = logprobs[:3].gather(1, torch.from_numpy(PROMPT[1:])[:, None])[:, 0]
    np.testing.assert_allclose(output.prompt_logprobs_T[1:], scored.numpy(), atol=1e-4)


def test_more_rows_than_the_cache_holds_run_in_turns(tiny_model: Callable[[str], Path]) -> None:
    narrow = LoadOptions(device="cpu", dtype="float32", threads=1, extra={"cache_tokens": 40})
    wide = tokens(sample(load_model("m", str(tiny_model("qwen3")), FP32), num_samples=20))
    assert tokens(sample(load_model("m", str(tiny_model("qwen3")), narrow), num_samples=20)) == wide


@pytest.mark.parametrize("dtype", ["bfloat16"])
def test_bf16_sampling_scores_close_to_bf16_training(dtype: str, tiny_model: Callable[[str], Path]) -> None:
    from sota_ml_researcher.engine.interface import TrainItem

    model = load_model("m", str(tiny_model("qwen3")), LoadOptions(device="cpu", dtype=dtype, threads=1))
    adapter = trained(model, LoraSpec(rank=4, seed=1))
    (output,) = model.sample([SampleSettings(PROMPT, max_tokens=16, seed=1, num_samples=4)], [adapter.weights()])
    for one in output.continuations:
        whole = np.concatenate([PROMPT, one.tokens_T])
        item = TrainItem(whole[:-1], {"target_tokens": whole[1:]})
        scored = adapter.forward_backward([item], "cross_entropy", None, backward=False).outputs[0]["logprobs"]
        assert np.abs(scored[3:] - one.logprobs_T).mean() < 0.02


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -1.0}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"num_samples": 0}, "num_samples"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 100}, "context window"),
        ({"stop_strings": ("",)}, "stop string"),
        ({"topk_sample_logprobs": 97}, "topk_sample_logprobs"),
        ({"num_samples": 10**9}, "num_samples"),
    ],
)
def test_what_cannot_be_sampled_is_refused_by_name(settings: dict[str, Any], message: str, tiny: LoadedModel) -> None:
    with pytest.raises(RequestRejectedError, match=message):
        sample(tiny, **settings)
