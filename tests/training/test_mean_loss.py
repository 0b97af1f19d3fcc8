"""Updates on a server that averages its losses, against those of one that sums them: they must be the same."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, cast

import numpy as np
import pytest
import tinker
import torch
from torch import Tensor

from sota_ml_researcher.backends.connection import Backend
from sota_ml_researcher.core.errors import BackendError
from sota_ml_researcher.core.names import BackendName
from sota_ml_researcher.training.client import LossNotFiniteError, TrainingClient, shifted_datum
from sota_ml_researcher.training.mean_loss_client import MeanLossClient
from sota_ml_researcher.training.sft.config import SftConfig

VOCABULARY, BATCH = 11, 4
LossName = tinker.types.LossFnType


class Server:
    """A bigram model behind the SDK's calls: the platform's sums, or SkyRL's means (its jax.py and loss_fns.py)."""

    def __init__(self, *, means: bool) -> None:
        torch.manual_seed(0)
        self.weights = torch.randn(VOCABULARY, VOCABULARY).requires_grad_()
        self._optimizer = torch.optim.AdamW([self.weights], lr=0.0)
        self._means = means
        self._sequences = 0
        self.metrics: dict[str, float] = {}
        self.calls: list[str] = []

    def _loss(self, datum: tinker.Datum, loss: LossName, settings: dict[str, float]) -> tuple[Tensor, Tensor]:
        inputs = datum.loss_fn_inputs
        targets = torch.as_tensor(inputs["target_tokens"].data)
        logprobs = self.weights[torch.tensor(datum.model_input.to_ints())].log_softmax(-1)
        logprobs = logprobs.gather(-1, targets[:, None])[:, 0]
        ones = torch.ones(len(targets))
        weights = torch.as_tensor(inputs["weights"].data) if "weights" in inputs else ones
        if loss == "cross_entropy":
            per_token = -logprobs
        else:
            ratio = (logprobs - torch.as_tensor(inputs["logprobs"].data)).exp()
            advantages = torch.as_tensor(inputs["advantages"].data)
            low, high = settings.get("clip_low_threshold", 0.8), settings.get("clip_high_threshold", 1.2)
            clipped = ratio.clip(low, high)
            per_token = {
                "importance_sampling": -ratio * advantages,
                "ppo": -torch.minimum(ratio * advantages, clipped * advantages),
                "cispo": -clipped.detach() * logprobs * advantages,
            }[loss]
        total = (torch.where(weights != 0, weights, 0) * per_token).sum()
        return total / weights.sum().clamp(min=1e-9) if self._means else total, logprobs

    def _answer(self, outputs: Sequence[Tensor]) -> tinker.ForwardBackwardOutput:
        tensors = [tinker.TensorData(data=lp.detach().numpy(), dtype="float32", shape=list(lp.shape)) for lp in outputs]
        return tinker.ForwardBackwardOutput(
            "ArrayRecord", [{"logprobs": tensor} for tensor in tensors], dict(self.metrics)
        )

    async def forward(self, data: list[tinker.Datum], loss: LossName) -> tinker.ForwardBackwardOutput:
        self.calls.append("forward")
        await asyncio.sleep(0)
        return self._answer([self._loss(datum, loss, {})[1] for datum in data])

    async def forward_backward(
        self, data: list[tinker.Datum], loss: LossName, settings: dict[str, float] | None = None
    ) -> tinker.ForwardBackwardOutput:
        self.calls.append(f"forward_backward {len(data)}")
        await asyncio.sleep(0)
        pairs = [self._loss(datum, loss, settings or {}) for datum in data]
        torch.stack([value for value, _ in pairs]).sum().backward()
        self._sequences += len(data)
        return self._answer([logprobs for _, logprobs in pairs])

    async def forward_backward_custom(self, data: list[tinker.Datum], loss: Any) -> tinker.ForwardBackwardOutput:
        before = await self.forward(data, "cross_entropy")
        logprobs = [one["logprobs"].to_torch().requires_grad_() for one in before.loss_fn_outputs]
        value, metrics = loss(data, logprobs)
        value.backward()
        weighed = [
            tinker.Datum(
                model_input=datum.model_input,
                loss_fn_inputs={
                    "target_tokens": datum.loss_fn_inputs["target_tokens"],
                    "weights": tinker.TensorData.from_torch(-cast("Tensor", lp.grad)),
                },
            )
            for datum, lp in zip(data, logprobs, strict=True)
        ]
        output = await self.forward_backward(weighed, "cross_entropy")
        output.metrics.update(metrics)
        return output

    async def optim_step(self, settings: tinker.AdamParams) -> tinker.OptimStepResponse:
        self.calls.append("optim_step")
        assert self.weights.grad is not None
        if self._means:
            self.weights.grad /= self._sequences
        norm = float(self.weights.grad.norm())
        group = self._optimizer.param_groups[0]
        group.update(lr=settings.learning_rate, betas=(settings.beta1, settings.beta2), eps=settings.eps)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._sequences = 0
        return tinker.OptimStepResponse(metrics={"skyrl.ai/grad_norm" if self._means else "grad_norm": norm})


Work = Callable[[TrainingClient], Awaitable[Any]]


def trained(*, means: bool, work: Work) -> tuple[Tensor, Any]:
    """The weights after some work on a server, and what the work returned."""
    server = Server(means=means)
    kind = MeanLossClient if means else TrainingClient
    # A large epsilon, so that one which does not follow the gradient's scale is seen.
    config = SftConfig(base_model="demo", train_file="x", batch_size=BATCH, adam_eps=0.1)
    backend = Backend(cast("BackendName", "cluster"), "http://127.0.0.1:9", "tml-x")
    result = asyncio.run(cast("Any", work(kind(cast("Any", server), config, backend))))
    return server.weights.detach(), result


def assert_equal_updates(work: Work) -> Any:
    (sums, told), (means, same) = trained(means=False, work=work), trained(means=True, work=work)
    assert not torch.equal(sums, Server(means=False).weights.detach())
    assert torch.allclose(sums, means, atol=2e-6)
    return told, same


def sequence(rng: np.random.Generator, total: float = 1.0) -> tinker.Datum:
    length = int(rng.integers(3, 9))
    weights = (rng.random(length) < 0.6).astype(np.float32)
    weights[-1] = 1.0
    weights[0] = 0.0
    return shifted_datum(rng.integers(0, VOCABULARY, length), weights * np.float32(total) / weights.sum())


def supervised(totals: Sequence[Sequence[float]]) -> Work:
    async def work(client: TrainingClient) -> list[Any]:
        rng = np.random.default_rng(1)
        told: list[Any] = []
        for batch in totals:
            data = [sequence(rng, total) for total in batch]
            gradient, update = client.forward_backward(data, "cross_entropy"), client.optim_step(0.1)
            told.append((len((await gradient).loss_fn_outputs), (await update).metrics))
        return told

    return work


def test_supervised_steps_are_the_same_though_the_last_batch_is_smaller() -> None:
    told, same = assert_equal_updates(supervised([[1.0] * BATCH, [1.0] * BATCH, [1.0]]))
    assert [outputs for outputs, _ in same] == [BATCH, BATCH, 1]
    assert [m["grad_norm"] for _, m in same] == pytest.approx([m["grad_norm"] for _, m in told], rel=1e-4)


def test_rows_of_unequal_weight_keep_it() -> None:
    assert_equal_updates(supervised([[1.0, 3.0, 0.5, 2.0], [1.0] * BATCH]))


def policy_data(rng: np.random.Generator) -> list[tinker.Datum]:
    data: list[tinker.Datum] = []
    for _ in range(BATCH):
        datum = sequence(rng)
        shape = len(datum.loss_fn_inputs["target_tokens"].data)
        floats = {"logprobs": -2 + 0.4 * rng.standard_normal(shape), "advantages": rng.standard_normal(shape)}
        inputs = {"target_tokens": datum.loss_fn_inputs["target_tokens"]} | {
            name: tinker.TensorData(data=value.astype(np.float32), dtype="float32", shape=[shape])
            for name, value in floats.items()
        }
        data.append(tinker.Datum(model_input=datum.model_input, loss_fn_inputs=inputs))
    return data


@pytest.mark.parametrize("loss", ["importance_sampling", "ppo", "cispo"])
def test_policy_gradients_are_the_same(loss: LossName) -> None:
    async def work(client: TrainingClient) -> None:
        rng = np.random.default_rng(2)
        for _ in range(3):
            settings = None if loss == "importance_sampling" else {"clip_low_threshold": 0.7}
            gradient, update = client.forward_backward(policy_data(rng), loss, settings), client.optim_step(0.1)
            await gradient
            await update

    assert_equal_updates(work)


def test_a_loss_of_pairs_is_the_same_though_its_gradient_has_both_signs() -> None:
    def loss(data: list[tinker.Datum], logprobs: list[Tensor]) -> tuple[Tensor, dict[str, float]]:
        sums = torch.stack([lp.sum() for lp in logprobs])
        value = -torch.nn.functional.logsigmoid(sums[0::2] - sums[1::2]).mean()
        return value, {"dpo_loss": float(value.detach())}

    async def work(client: TrainingClient) -> list[float]:
        rng = np.random.default_rng(3)
        told: list[float] = []
        for _ in range(3):
            data = [sequence(rng) for _ in range(BATCH)]
            gradient, update = client.forward_backward_custom(data, loss), client.optim_step(0.1)
            told.append((await gradient).metrics["dpo_loss"])
            await update
        return told

    told, same = assert_equal_updates(work)
    assert same == pytest.approx(told, rel=1e-5)


def test_steps_sent_ahead_stay_in_order() -> None:
    server = Server(means=True)

    async def work() -> None:
        config = SftConfig(base_model="demo", train_file="x", batch_size=2)
        backend = Backend("cluster", "http://127.0.0.1:9", "tml-x")
        client = MeanLossClient(cast("Any", server), config, backend)
        rng = np.random.default_rng(4)

        def loss(data: list[tinker.Datum], logprobs: list[Tensor]) -> tuple[Tensor, dict[str, float]]:
            return -logprobs[0].sum(), {}

        sent: list[Awaitable[Any]] = []
        for _ in range(2):
            sent += [client.forward_backward_custom([sequence(rng)], loss), client.optim_step(0.1)]
        await asyncio.gather(*sent)

    asyncio.run(work())
    assert server.calls == ["forward", "forward_backward 1", "optim_step"] * 2


@pytest.mark.parametrize(("broken", "error"), [("nan", LossNotFiniteError), ("another backend", BackendError)], ids=str)
def test_no_update_follows_what_cannot_be_trusted(broken: str, error: type[Exception]) -> None:
    server = Server(means=True)
    if broken == "nan":
        server.weights.data[:] = torch.nan
    else:  # SkyRL's FSDP and Megatron backends report this, and were never seen to average
        server.metrics = {"total_loss:sum": 1.0}

    async def work() -> None:
        config = SftConfig(base_model="demo", train_file="x", batch_size=1)
        client = MeanLossClient(cast("Any", server), config, Backend("cluster", "http://127.0.0.1:9", "tml-x"))
        gradient = client.forward_backward([sequence(np.random.default_rng(5))], "cross_entropy")
        update = client.optim_step(0.1)
        for answer in (gradient, update):
            with pytest.raises(error):
                await answer

    asyncio.run(work())
    assert "optim_step" not in server.calls
