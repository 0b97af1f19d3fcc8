"""What an RL step computes and logs, against plain arithmetic written from the definitions; always runs."""

from __future__ import annotations

import asyncio
import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tinker
import torch
from tinker_cookbook.rl import metrics as loop_metrics
from tinker_cookbook.rl.data_processing import assemble_training_data
from tinker_cookbook.rl.types import Trajectory, TrajectoryGroup, Transition

from sota_ml_researcher.engine.compute.losses import LOSSES, LossInputs
from sota_ml_researcher.rewards.problems import Problem
from sota_ml_researcher.rewards.scorers import Response, Score
from sota_ml_researcher.training.rl.advantages import kl_estimates, penalize_kl, scored_advantages
from sota_ml_researcher.training.rl.rollout_log import sample_metrics
from sota_ml_researcher.training.rl.rollouts import PlayedGroup

TOLERANCE = 1e-5
RNG = np.random.default_rng(5)
LENGTHS = (3, 7, 5, 1)
# Four responses: log-probabilities per token, of the policy and of the sampler, and an advantage per response.
POLICY = [RNG.uniform(-3, -0.1, length) for length in LENGTHS]
SAMPLER = [policy + RNG.normal(0, 0.4, len(policy)) for policy in POLICY]
ADVANTAGES = [1.3, -0.7, 0.2, -1.1]


@dataclass(frozen=True)
class Token:
    """One token as the formulas see it."""

    policy: float
    sampler: float
    sequence_ratio: float
    advantage: float

    @property
    def ratio(self) -> float:
        return math.exp(self.policy - self.sampler)


def tokens() -> Iterator[Token]:
    for policy, sampler, advantage in zip(POLICY, SAMPLER, ADVANTAGES, strict=True):
        sequence_ratio = math.exp(float(np.mean(policy - sampler)))
        for p, q in zip(policy, sampler, strict=True):
            yield Token(float(p), float(q), sequence_ratio, advantage)


def clip(x: float, low: float, high: float) -> float:
    return min(max(x, low), high)


def clipped(ratio: float, advantage: float, low: float, high: float) -> float:
    return min(ratio * advantage, clip(ratio, low, high) * advantage)


def objective(name: str, token: Token, low: float, high: float, beta: float) -> float:
    """What the loss ``name`` maximises at one token, by the formulas of the docs and papers."""
    if name == "importance_sampling":
        return token.ratio * token.advantage
    if name == "ppo":
        return clipped(token.ratio, token.advantage, low, high)
    if name == "cispo":
        return clip(token.ratio, low, high) * token.policy * token.advantage
    if name == "gspo":
        return clipped(token.sequence_ratio, token.advantage, low, high)
    assert name == "dro"
    return token.advantage * token.policy - beta / 2 * (token.policy - token.sampler) ** 2


@pytest.mark.parametrize(
    ("name", "low", "high", "beta"),
    [
        ("importance_sampling", 0, 0, 0),
        ("ppo", 0.8, 1.2, 0),
        ("ppo", 0.8, 1.28, 0),
        ("cispo", 0.0, 4.0, 0),
        ("cispo", 0.9, 1.2, 0),
        ("gspo", 1 - 3e-4, 1 + 4e-4, 0),
        ("gspo", 0.9, 1.1, 0),
        ("dro", 0, 0, 0.05),
        ("dro", 0, 0, 0.7),
    ],
)
def test_each_policy_loss_is_its_formula_summed_over_tokens(name: str, low: float, high: float, beta: float) -> None:
    owner = torch.tensor([i for i, n in enumerate(LENGTHS) for _ in range(n)])
    tensors = {
        "logprobs": torch.tensor(np.concatenate(SAMPLER)),
        "advantages": torch.tensor(np.repeat(ADVANTAGES, LENGTHS)),
        "sequence_ratio_mask": torch.ones(sum(LENGTHS)),
    }
    settings = {"clip_low_threshold": low, "clip_high_threshold": high, "beta": beta}
    policy = torch.tensor(np.concatenate(POLICY))
    loss = LOSSES[name].function(policy, LossInputs(tensors, owner, len(LENGTHS)), settings)
    expected = -sum(objective(name, token, low, high, beta) for token in tokens())
    assert float(loss) == pytest.approx(expected, abs=TOLERANCE)


def test_the_kl_estimates_are_schulman_s() -> None:
    policy, reference = np.concatenate(POLICY), np.concatenate(SAMPLER)
    estimates = kl_estimates(torch.tensor(policy), torch.tensor(reference))
    ratio = np.exp(reference - policy)  # reference over policy, at tokens of the policy
    assert estimates["kl/k1"] == pytest.approx(float(np.mean(-np.log(ratio))), abs=TOLERANCE)
    assert estimates["kl/k2"] == pytest.approx(float(np.mean(np.log(ratio) ** 2 / 2)), abs=TOLERANCE)
    assert estimates["kl/k3"] == pytest.approx(float(np.mean(ratio - 1 - np.log(ratio))), abs=TOLERANCE)


def test_the_estimators_agree_with_the_kl_of_two_known_distributions() -> None:
    policy, reference = np.array([0.5, 0.3, 0.2]), np.array([0.4, 0.4, 0.2])
    tokens = np.random.default_rng(0).choice(3, size=400_000, p=policy)
    estimates = kl_estimates(torch.tensor(np.log(policy)[tokens]), torch.tensor(np.log(reference)[tokens]))
    exact = float((policy * np.log(policy / reference)).sum())  # 0.0253 nats
    for name in ("kl/k1", "kl/k3"):  # unbiased; k2 is not
        assert estimates[name] == pytest.approx(exact, abs=0.002), name


PROMPT = [1, 2, 3]


def trajectory(tokens: list[int], logprobs: list[float]) -> Trajectory:
    action: Any = SimpleNamespace(tokens=tokens, logprobs=logprobs)
    step = Transition(ob=tinker.ModelInput.from_ints(PROMPT), ac=action, reward=0.0, episode_done=True, metrics={})
    return Trajectory(transitions=[step], final_ob=tinker.ModelInput.from_ints([]))


def group(rewards: list[float]) -> TrajectoryGroup:
    responses = [trajectory(list(range(10, 10 + len(q))), q.tolist()) for q in SAMPLER]
    return TrajectoryGroup(responses, rewards, [{} for _ in rewards])


@pytest.mark.parametrize("kind", ["mean", "grpo"])
def test_advantages_reach_every_written_token_and_none_of_the_prompt(kind: Any) -> None:
    rewards = [1.0, 0.0, 0.5, 0.0]
    groups = [group(rewards)]
    data, _ = assemble_training_data(groups, [scored_advantages(g, kind) for g in groups])
    scale = statistics.stdev(rewards) + 1e-4 if kind == "grpo" else 1.0
    for datum, reward, q in zip(data, rewards, SAMPLER, strict=True):
        wanted = [0.0] * (len(PROMPT) - 1) + [(reward - statistics.fmean(rewards)) / scale] * len(q)
        assert datum.loss_fn_inputs["advantages"].data == pytest.approx(wanted, abs=TOLERANCE)
        assert datum.loss_fn_inputs["mask"].data == [0.0] * (len(PROMPT) - 1) + [1.0] * len(q)


class Reference:
    """A reference model that answers with the log-probabilities POLICY, whatever the prompt's are."""

    async def logprobs(self, sequence: tinker.ModelInput) -> list[float | None]:
        written = sequence.length - len(PROMPT)
        values = next(p for p in POLICY if len(p) == written)
        return [None, *[-9.0] * (len(PROMPT) - 1), *map(float, values)]


def test_the_kl_penalty_moves_advantages_by_k1_and_logs_both_estimates() -> None:
    groups = [group([1.0, 0.0, 0.5, 0.0])]
    data, _ = assemble_training_data(groups, [scored_advantages(g, "mean") for g in groups])
    before = [list(datum.loss_fn_inputs["advantages"].data) for datum in data]
    reference: Any = Reference()
    logged = asyncio.run(penalize_kl(data, reference, 0.1))
    drift = [q - p for q, p in zip(SAMPLER, POLICY, strict=True)]  # log policy - log reference at the sampled tokens
    mean = float(np.concatenate(drift).mean())
    for datum, old, d in zip(data, before, drift, strict=True):
        wanted = [0.0] * (len(PROMPT) - 1) + [0.1 * (mean - float(v)) for v in d]
        moved = np.array(datum.loss_fn_inputs["advantages"].data) - np.array(old)
        assert moved.tolist() == pytest.approx(wanted, abs=TOLERANCE)
    flat = np.concatenate(drift)
    assert logged["kl/k1"] == pytest.approx(mean, abs=TOLERANCE)
    assert logged["kl_policy_base"] == pytest.approx(mean, abs=TOLERANCE)
    assert logged["kl/k3"] == pytest.approx(float(np.mean(np.exp(-flat) - 1 + flat)), abs=TOLERANCE)


def test_the_sampler_s_drift_and_entropy_are_means_over_written_tokens() -> None:
    groups = [group([1.0, 0.0, 0.5, 0.0])]
    data, _ = assemble_training_data(groups, [scored_advantages(g, "mean") for g in groups])
    now = [torch.tensor([5.0] * (len(PROMPT) - 1) + list(map(float, p))) for p in POLICY]
    found = loop_metrics.compute_kl_sample_train(data, now)
    drift = np.concatenate(SAMPLER) - np.concatenate(POLICY)
    assert found["optim/kl_sample_train_v1"] == pytest.approx(float(drift.mean()), abs=TOLERANCE)
    assert found["optim/kl_sample_train_v2"] == pytest.approx(float((drift**2).mean() / 2), abs=TOLERANCE)
    assert found["optim/entropy"] == pytest.approx(-float(np.concatenate(SAMPLER).mean()), abs=TOLERANCE)


def test_a_step_s_statistics_are_of_its_samples_and_rewards_of_those_scored() -> None:
    problem = Problem(1, ({"role": "user", "content": "x"},), {})
    rewards = [[1.0, 0.0, 0.25], [0.5, 0.5, 0.5]]
    tokens = [[3, 9, 6], [1, 1, 4]]
    groups = [
        PlayedGroup(
            problem,
            [],
            [Response("y", n, n == 9) for n in row_tokens],
            [Score(r, {"part": 2 * r}, failed=r == 0.25) for r in row_rewards],
        )
        for row_rewards, row_tokens in zip(rewards, tokens, strict=True)
    ]
    flat = [r for row in rewards for r in row if r != 0.25]
    assert sample_metrics(groups) == pytest.approx(
        {
            "reward/mean": statistics.fmean(flat),
            "reward/std": statistics.pstdev(flat),
            "reward/constant_groups": 0.5,
            "reward/failed": 1 / 6,
            "response/tokens": 4.0,
            "response/cut": 1 / 6,
            "reward/part": 2 * statistics.fmean(flat),
        },
        abs=TOLERANCE,
    )
