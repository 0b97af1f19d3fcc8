"""The losses against references written from the papers, in plain floating point, pair by pair."""

import math
import random

import pytest
import torch

from sota_ml_researcher.training.dpo.preference_loss import PairScores, preference_loss, preference_metrics

PAIRS = 7


def scores(seed: int) -> tuple[PairScores, list[tuple[float, float, float, float, int, int]]]:
    rng = random.Random(seed)
    rows = [(*(rng.uniform(-40, -1) for _ in range(4)), rng.randint(1, 30), rng.randint(1, 30)) for _ in range(PAIRS)]
    columns = [torch.tensor(column, dtype=torch.float64) for column in zip(*rows, strict=True)]
    return PairScores(*columns), rows  # type: ignore[arg-type]


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x)) if x > -30 else x


def reference(row: tuple[float, float, float, float, int, int], loss: str, beta: float, smoothing: float) -> float:
    # TRL: logratios = chosen - rejected under the policy, ref_logratios the same under the reference
    chosen, rejected, ref_chosen, ref_rejected, chosen_n, rejected_n = row
    if loss != "dpo":
        chosen, ref_chosen = chosen / chosen_n, ref_chosen / chosen_n
        rejected, ref_rejected = rejected / rejected_n, ref_rejected / rejected_n
    logits = (chosen - rejected) - (ref_chosen - ref_rejected)
    if loss == "ipo":
        return (logits - 1 / (2 * beta)) ** 2
    return -log_sigmoid(beta * logits) * (1 - smoothing) - log_sigmoid(-beta * logits) * smoothing


@pytest.mark.parametrize("beta", [0.05, 0.1, 2.0])
@pytest.mark.parametrize(
    ("loss", "smoothing"), [("dpo", 0.0), ("dpo", 0.2), ("ipo", 0.0), ("dpo_norm", 0.0), ("dpo_norm", 0.1)]
)
def test_each_loss_is_the_mean_of_its_formula(loss: str, smoothing: float, beta: float) -> None:
    found, rows = scores(1)
    expected = sum(reference(row, loss, beta, smoothing) for row in rows) / PAIRS
    value = preference_loss(found, loss=loss, beta=beta, label_smoothing=smoothing)  # type: ignore[arg-type]
    assert float(value) == pytest.approx(expected, abs=1e-10)


def test_where_policy_and_reference_agree_the_loss_is_ln_2_and_accuracy_one_half() -> None:
    found, _ = scores(2)
    same = PairScores(
        found.chosen_P,
        found.rejected_P,
        found.chosen_P,
        found.rejected_P,
        found.chosen_tokens_P,
        found.rejected_tokens_P,
    )
    loss = preference_loss(same, loss="dpo", beta=0.1)
    assert float(loss) == pytest.approx(math.log(2), abs=1e-12)
    metrics = preference_metrics(same, loss, beta=0.1)
    assert (metrics["accuracy"], metrics["margin"]) == (0.5, 0.0)


def test_the_metrics_are_those_of_the_batch() -> None:
    found, rows = scores(3)
    metrics = preference_metrics(found, preference_loss(found, loss="dpo", beta=0.3), beta=0.3)
    chosen = [row[0] - row[2] for row in rows]
    rejected = [row[1] - row[3] for row in rows]
    wins = sum(c > r for c, r in zip(chosen, rejected, strict=True))
    assert metrics["accuracy"] == pytest.approx(wins / PAIRS)
    assert metrics["margin"] == pytest.approx(0.3 * sum(c - r for c, r in zip(chosen, rejected, strict=True)) / PAIRS)
    assert metrics["chosen_reward"] == pytest.approx(0.3 * sum(chosen) / PAIRS)
    assert metrics["rejected_logprob"] == pytest.approx(sum(row[1] for row in rows) / PAIRS)
    assert metrics["chosen_tokens"] == pytest.approx(sum(row[4] for row in rows) / PAIRS)


def test_the_gradient_pushes_chosen_up_and_rejected_down_by_beta_times_the_doubt() -> None:
    found, _ = scores(4)
    chosen_P = found.chosen_P.clone().requires_grad_(True)
    rejected_P = found.rejected_P.clone().requires_grad_(True)
    moved = PairScores(
        chosen_P,
        rejected_P,
        found.chosen_reference_P,
        found.rejected_reference_P,
        found.chosen_tokens_P,
        found.rejected_tokens_P,
    )
    preference_loss(moved, loss="dpo", beta=0.1).backward()
    doubt_P = torch.sigmoid(-0.1 * (found.chosen_ratio_P - found.rejected_ratio_P))  # Rafailov et al., eq. 8
    assert chosen_P.grad is not None and rejected_P.grad is not None
    torch.testing.assert_close(chosen_P.grad, -0.1 * doubt_P / PAIRS)
    torch.testing.assert_close(rejected_P.grad, 0.1 * doubt_P / PAIRS)
