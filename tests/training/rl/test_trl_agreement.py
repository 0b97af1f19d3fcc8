"""A second opinion: TRL's own loss code on the same log-probabilities, to 1e-5.

TRL's trainers compute their losses in a method that takes a model and a batch. Here that method runs on a model that
answers with given log-probabilities, so that nothing but the loss differs. What corresponds to what, and where the two
differ on purpose, stands beside each case.
"""

from __future__ import annotations

import math
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sota_ml_researcher.engine.compute.losses import LOSSES, LossInputs
from sota_ml_researcher.rewards.reward_rules import overlong_penalty
from sota_ml_researcher.training.dpo.config import load_dpo_settings
from sota_ml_researcher.training.dpo.preference_loss import preference_loss, preference_metrics
from sota_ml_researcher.training.dpo.reference import pair_scores, weighted_sums
from sota_ml_researcher.training.rl.advantages import group_advantages, kl_estimates
from sota_ml_researcher.training.rl.config import load_rl_settings
from sota_ml_researcher.training.rl.method import loss_settings

pytest.importorskip("trl", reason="TRL comes with the bench extra: pip install 'sota-ml-researcher[bench]'")
pytestmark = pytest.mark.filterwarnings("ignore")

TOLERANCE = 1e-5
PAIRS, LENGTH = 6, 11


class OneProcess:
    """What the trainers ask of accelerate, for one process."""

    device = torch.device("cpu")
    num_processes = 1
    sync_gradients = True

    def gather(self, value: torch.Tensor) -> torch.Tensor:
        return value

    def gather_for_metrics(self, value: torch.Tensor) -> torch.Tensor:
        return value

    def reduce(self, value: torch.Tensor, reduction: str) -> torch.Tensor:
        return value


def some_masks(rows: int, generator: torch.Generator) -> torch.Tensor:
    """Completions of different lengths after a prompt of two tokens, shape [rows, LENGTH]."""
    ends = torch.randint(4, LENGTH + 1, (rows, 1), generator=generator)
    places = torch.arange(LENGTH)[None]
    return ((places >= 2) & (places < ends)).float()


def some_logprobs(mask: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return -3 * torch.rand(mask.shape, generator=generator) * mask


def trl_dpo(
    loss: str, beta: float, policy: torch.Tensor, reference: torch.Tensor, mask: torch.Tensor
) -> tuple[torch.Tensor, dict[str, float]]:
    """`DPOTrainer._compute_loss`; rows are all the chosen ones, then all the rejected ones."""
    from trl.trainer.dpo_trainer import DPOTrainer

    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=OneProcess(),
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        loss_types=[loss],
        loss_weights=[1.0],
        beta=beta,
        label_smoothing=0.0,
        use_weighting=False,
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
    )
    shown = torch.zeros_like(policy)
    outputs = SimpleNamespace(
        log_probs=policy, entropy=shown, mean_logits=shown, is_top1=shown.bool(), log_sum_sq_probs=shown
    )
    # The trainer's masks cover the whole sequence, and a log-probability belongs to the token after its position.
    whole = torch.cat([torch.zeros(len(mask), 1), mask], dim=1)
    chosen, rejected = reference.sum(1).chunk(2)
    inputs = {
        "input_ids": torch.ones(whole.shape, dtype=torch.long),
        "attention_mask": torch.ones(whole.shape, dtype=torch.long),
        "completion_mask": whole.long(),
        "ref_chosen_logps": chosen,
        "ref_rejected_logps": rejected,
    }
    value = DPOTrainer._compute_loss(trainer, lambda **_: outputs, inputs, False)
    return value, {name: found[-1] for name, found in trainer._metrics["train"].items()}


def our_dpo(
    changes: dict[str, Any], policy: torch.Tensor, reference: torch.Tensor, mask: torch.Tensor
) -> tuple[torch.Tensor, dict[str, float]]:
    """What a DPO job sends as its custom loss, on the batch as the loop has it: chosen and rejected in turn."""
    import tinker

    base = {"base_model": "demo", "train_file": "demo:dpo_train"}
    config = load_dpo_settings(None, {**base, **changes}).config
    order = [row for pair in range(PAIRS) for row in (pair, PAIRS + pair)]
    data = [
        tinker.Datum(
            model_input=tinker.ModelInput.from_ints([1] * LENGTH),
            loss_fn_inputs={
                "target_tokens": tinker.TensorData(data=[1] * LENGTH, dtype="int64", shape=[LENGTH]),
                "weights": tinker.TensorData(data=mask[row].tolist(), dtype="float32", shape=[LENGTH]),
            },
        )
        for row in order
    ]
    sums = torch.stack([reference[row].sum() for row in order])
    scores = pair_scores(data, weighted_sums(data, [policy[row] for row in order]), sums)
    loss = preference_loss(scores, loss=config.loss, beta=config.beta, label_smoothing=config.label_smoothing)
    return loss, preference_metrics(scores, loss, beta=config.beta)


def dpo_batch(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mask = some_masks(2 * PAIRS, generator)
    return some_logprobs(mask, generator).requires_grad_(True), some_logprobs(mask, generator), mask


def swapped(rows: torch.Tensor) -> torch.Tensor:
    return torch.cat(list(reversed(rows.chunk(2))))


@pytest.mark.parametrize("beta", [0.1, 0.7])
@pytest.mark.parametrize(
    ("changes", "theirs"),
    [
        ({"loss": "dpo"}, "sigmoid"),
        ({"loss": "ipo"}, "ipo"),
        ({"loss": "dpo_norm"}, "sigmoid_norm"),
        # TRL 1.16 has no cDPO; it is its sigmoid loss of the pairs and of the pairs swapped, weighed by the doubt.
        ({"loss": "dpo", "label_smoothing": 0.2}, "sigmoid"),
        ({"loss": "dpo_norm", "label_smoothing": 0.1}, "sigmoid_norm"),
    ],
    ids=["dpo", "ipo", "length-normalised", "cDPO", "length-normalised cDPO"],
)
def test_preference_losses_gradients_and_metrics_are_trl_s(changes: dict[str, Any], theirs: str, beta: float) -> None:
    policy, reference, mask = dpo_batch(1)
    doubt = changes.get("label_smoothing", 0.0)
    value, metrics = our_dpo({**changes, "beta": beta}, policy, reference, mask)
    expected, logged = trl_dpo(theirs, beta, policy, reference, mask)
    if doubt:
        other, _ = trl_dpo(theirs, beta, swapped(policy), swapped(reference), swapped(mask))
        expected = (1 - doubt) * expected + doubt * other
    assert float(value) == pytest.approx(float(expected), abs=TOLERANCE)
    (ours,) = torch.autograd.grad(value, policy)
    (peers,) = torch.autograd.grad(expected, policy)
    assert peers.abs().max() > 1e-4
    torch.testing.assert_close(ours, peers * mask, atol=TOLERANCE, rtol=TOLERANCE)
    names = {
        "chosen_reward": "rewards/chosen",
        "rejected_reward": "rewards/rejected",
        "accuracy": "rewards/accuracies",
        "margin": "rewards/margins",
        "chosen_logprob": "logps/chosen",
        "rejected_logprob": "logps/rejected",
    }
    for name, peer in names.items():
        assert metrics[name] == pytest.approx(logged[peer], abs=TOLERANCE), name
    assert metrics["dpo_loss"] == pytest.approx(float(expected), abs=TOLERANCE)


def test_a_tie_is_half_right_here_and_wrong_for_trl() -> None:
    policy, _, mask = dpo_batch(2)
    _, metrics = our_dpo({}, policy, policy.detach(), mask)
    _, logged = trl_dpo("sigmoid", 0.1, policy, policy.detach(), mask)
    assert (metrics["accuracy"], logged["rewards/accuracies"]) == (0.5, 0.0)


class Rollout:
    """Sampled tokens as both sides have them: log-probabilities now and when sampled, and advantages. Axes B, T."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.mask_BT = some_masks(8, generator)[:, 2:]
        self.policy_BT = some_logprobs(self.mask_BT, generator).requires_grad_(True)
        # Ratios from about 0.4 to 2.5: on both sides of every clip.
        self.sampled_BT = self.policy_BT.detach() + 0.4 * torch.randn(self.mask_BT.shape, generator=generator)
        self.reference_BT = self.policy_BT.detach() + 0.3 * torch.randn(self.mask_BT.shape, generator=generator)
        self.advantages_B = torch.randn(8, generator=generator)

    @property
    def tokens(self) -> float:
        return float(self.mask_BT.sum())


def trl_grpo(
    rollout: Rollout, *, loss: str, low: float, high: float, level: str = "token", beta: float = 0.0
) -> tuple[torch.Tensor, dict[str, float]]:
    """`GRPOTrainer._compute_loss`."""
    from trl.trainer.grpo_trainer import GRPOTrainer

    rows, length = rollout.mask_BT.shape
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=OneProcess(),
        args=SimpleNamespace(use_bias_correction_kl=False, delta=None, steps_per_generation=1),
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level=level,
        beta=beta,
        loss_type=loss,
        epsilon_low=low,
        epsilon_high=high,
        use_vllm=False,
        current_gradient_accumulation_steps=1,
        max_completion_length=length,
        _entropy_bonus_enabled=False,
        _metrics={"train": defaultdict(list)},
        _get_per_token_logps_and_entropies=lambda *_, **__: (rollout.policy_BT, torch.zeros(rows, length), None),
    )
    ones = torch.ones(rows, 2, dtype=torch.long)
    inputs = {
        "prompt_ids": ones,
        "prompt_mask": ones,
        "completion_ids": torch.ones(rows, length, dtype=torch.long),
        "completion_mask": rollout.mask_BT.long(),
        "advantages": rollout.advantages_B,
        "old_per_token_logps": rollout.sampled_BT,
        "ref_per_token_logps": rollout.reference_BT,
        "num_items_in_batch": rollout.mask_BT.sum(),
    }
    value = GRPOTrainer._compute_loss(trainer, None, inputs)
    return value, {name: found[-1] for name, found in trainer._metrics["train"].items()}


def our_rl(rollout: Rollout, changes: dict[str, Any], advantages_B: torch.Tensor) -> torch.Tensor:
    """The engine's loss with the settings a job of this config sends, on the tokens the model wrote."""
    base = {"base_model": "demo", "train_file": "demo:rl_train", "reward_type": "math"}
    config = load_rl_settings(None, {**base, **changes}).config
    definition = LOSSES[config.loss_fn]
    written = rollout.mask_BT > 0
    owner_BT = torch.arange(len(advantages_B))[:, None].expand_as(written)
    tensors = {
        "logprobs": rollout.sampled_BT[written],
        "advantages": advantages_B[:, None].expand_as(written)[written],
        "sequence_ratio_mask": torch.ones(int(written.sum())),
    }
    inputs = LossInputs(tensors, owner_BT[written], len(advantages_B))
    settings = {**definition.config, **loss_settings(config)}
    return definition.function(rollout.policy_BT[written], inputs, settings)


def assert_alike(rollout: Rollout, ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert float(ours) == pytest.approx(float(theirs), abs=TOLERANCE)
    (mine,) = torch.autograd.grad(ours, rollout.policy_BT)
    (peers,) = torch.autograd.grad(theirs, rollout.policy_BT)
    assert peers.abs().max() > 1e-4
    torch.testing.assert_close(mine, peers * rollout.mask_BT, atol=TOLERANCE, rtol=TOLERANCE)


WIDE = 1e6


@pytest.mark.parametrize(
    ("changes", "theirs"),
    [
        # Without a clip, the clipped objective is importance sampling.
        ({"loss_fn": "importance_sampling"}, {"loss": "dapo", "low": WIDE, "high": WIDE}),
        ({"loss_fn": "ppo", "clip_ratio": 0.2}, {"loss": "dapo", "low": 0.2, "high": 0.2}),
        ({"loss_fn": "ppo", "clip_ratio": [0.2, 0.28]}, {"loss": "dapo", "low": 0.2, "high": 0.28}),
        # TRL clips CISPO's weight from above only, at epsilon_high itself; so does the platform by default (0 to 4).
        ({"loss_fn": "cispo", "clip_ratio": [0.0, 1.4]}, {"loss": "cispo", "low": 0.2, "high": 1.4}),
        ({"loss_fn": "cispo"}, {"loss": "cispo", "low": 0.2, "high": 4.0}),
    ],
    ids=["importance_sampling", "ppo", "ppo, clip higher", "cispo", "cispo, default"],
)
def test_policy_losses_and_gradients_are_trl_s(changes: dict[str, Any], theirs: dict[str, Any]) -> None:
    """The platform sums over tokens; TRL's dapo, bnpo and cispo divide that by the number of tokens in the batch."""
    rollout = Rollout(3)
    expected, _ = trl_grpo(rollout, **theirs)
    assert_alike(rollout, our_rl(rollout, changes, rollout.advantages_B) / rollout.tokens, expected)


def test_dr_grpo_is_the_platform_s_sum_over_a_constant() -> None:
    rollout = Rollout(4)
    expected, _ = trl_grpo(rollout, loss="dr_grpo", low=0.2, high=0.2)
    ours = our_rl(rollout, {"loss_fn": "ppo", "clip_ratio": 0.2}, rollout.advantages_B)
    assert_alike(rollout, ours / rollout.mask_BT.numel(), expected)


@pytest.mark.parametrize("clip", [(3e-4, 4e-4), (0.05, 0.1), (WIDE, WIDE)])
def test_gspo_is_trl_s_with_each_sequence_s_advantage_over_its_length(clip: tuple[float, float]) -> None:
    """The paper and TRL count each sequence once; the platform's sum over tokens counts a long one more."""
    rollout = Rollout(5)
    expected, _ = trl_grpo(rollout, loss="grpo", low=clip[0], high=clip[1], level="sequence")
    per_token_B = rollout.advantages_B / rollout.mask_BT.sum(1) / len(rollout.advantages_B)
    assert_alike(rollout, our_rl(rollout, {"loss_fn": "gspo", "clip_ratio": clip}, per_token_B), expected)


def test_grpo_s_first_normaliser_is_the_same_with_advantages_over_lengths() -> None:
    """DeepSeekMath averages within each response first, which favours short right and long wrong ones (Dr. GRPO)."""
    rollout = Rollout(6)
    expected, _ = trl_grpo(rollout, loss="grpo", low=0.2, high=0.2)
    per_token_B = rollout.advantages_B / rollout.mask_BT.sum(1) / len(rollout.advantages_B)
    assert_alike(rollout, our_rl(rollout, {"loss_fn": "ppo", "clip_ratio": 0.2}, per_token_B), expected)


def test_the_logged_kl_is_trl_s() -> None:
    """TRL's KL is k3, and it is a term of its loss. A job here logs k3 too, but its penalty is k1 in the advantages."""
    rollout = Rollout(7)
    _, logged = trl_grpo(rollout, loss="dapo", low=0.2, high=0.2, beta=0.1)
    written = rollout.mask_BT > 0
    found = kl_estimates(rollout.policy_BT.detach()[written], rollout.reference_BT[written])
    assert found["kl/k3"] == pytest.approx(logged["kl"], abs=TOLERANCE)


@pytest.mark.parametrize("rewards", [[0.0, 1.0, 1.0, 0.0], [0.3, -2.0, 5.5, 0.1], [1.0, 1.0, 1.0, 1.0]])
def test_advantages_are_trl_s(rewards: list[float]) -> None:
    """TRL computes them inside its generation step: here in its words, with its deviation."""
    from trl.trainer.utils import nanstd

    group = torch.tensor([rewards])
    centred = group - torch.nanmean(group, dim=1, keepdim=True)
    scaled = centred / (nanstd(group, dim=1)[:, None] + 1e-4)  # scale_rewards="group"
    torch.testing.assert_close(group_advantages(rewards, "mean"), centred[0], atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(group_advantages(rewards, "grpo"), scaled[0], atol=TOLERANCE, rtol=0)


def test_the_overlong_penalty_is_trl_s() -> None:
    from trl.rewards import get_soft_overlong_punishment

    lengths = [1, 70, 80, 81, 93, 99, 100, 101, 150]
    theirs = get_soft_overlong_punishment(max_completion_len=100, soft_punish_cache=20)([[0] * n for n in lengths])
    ours = [overlong_penalty(n, max_tokens=100, buffer=20) for n in lengths]
    assert ours == pytest.approx(theirs, abs=TOLERANCE)
    assert math.isclose(min(ours), -1) and max(ours) == 0
