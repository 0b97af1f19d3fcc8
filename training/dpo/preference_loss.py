# pyright: basic
# Reason: tensor arithmetic; torch's operators are typed too loosely for strict mode to help.
"""The preference losses, as functions of log-probabilities summed over each answer. Axis suffix P: pairs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .config import PreferenceLoss


@dataclass(frozen=True, slots=True)
class PairScores:
    """What the losses read, each of shape [P]: nats of a whole answer under policy and reference, and tokens."""

    chosen_P: Tensor
    rejected_P: Tensor
    chosen_reference_P: Tensor
    rejected_reference_P: Tensor
    chosen_tokens_P: Tensor
    rejected_tokens_P: Tensor

    @property
    def chosen_ratio_P(self) -> Tensor:
        """log(policy / reference) of the chosen answers."""
        return self.chosen_P - self.chosen_reference_P

    @property
    def rejected_ratio_P(self) -> Tensor:
        """log(policy / reference) of the rejected answers."""
        return self.rejected_P - self.rejected_reference_P


def preference_loss(scores: PairScores, *, loss: PreferenceLoss, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """Mean loss over pairs, a scalar.

    With h the chosen log-ratio minus the rejected one:
    ``dpo``: -(1 - e) log sigmoid(beta h) - e log sigmoid(-beta h); Rafailov et al. 2023, arXiv 2305.18290, eq. 7, with
    the label smoothing e of Mitchell's conservative DPO.
    ``dpo_norm``: the same with each log-ratio divided by its answer's tokens (Tulu 3, arXiv 2411.15124, eq. 6).
    ``ipo``: (h - 1 / (2 beta))^2, Azar et al. 2023, arXiv 2310.12036, eq. 17, on log-ratios divided by tokens as in
    TRL; the paper sums, which makes the target depend on length.
    """
    chosen_P, rejected_P = scores.chosen_ratio_P, scores.rejected_ratio_P
    if loss != "dpo":
        chosen_P = chosen_P / scores.chosen_tokens_P
        rejected_P = rejected_P / scores.rejected_tokens_P
    h_P = chosen_P - rejected_P
    if loss == "ipo":
        return (h_P - 1 / (2 * beta)).square().mean()
    right_P, wrong_P = F.logsigmoid(beta * h_P), F.logsigmoid(-beta * h_P)
    return -((1 - label_smoothing) * right_P + label_smoothing * wrong_P).mean()


def preference_metrics(scores: PairScores, loss: Tensor, *, beta: float) -> dict[str, float]:
    """What to log of a batch. Rewards are beta x log-ratio (nats); a tie of rewards counts as half right.

    The cookbook counts a tie as wrong, so that its accuracy starts at 0; where policy and reference are the same,
    one half says what is known.
    """
    with torch.no_grad():
        chosen_P, rejected_P = scores.chosen_ratio_P, scores.rejected_ratio_P
        right = (chosen_P > rejected_P).float() + 0.5 * (chosen_P == rejected_P).float()
        values = {
            "dpo_loss": loss,
            "accuracy": right.mean(),
            "margin": beta * (chosen_P - rejected_P).mean(),
            "chosen_reward": beta * chosen_P.mean(),
            "rejected_reward": beta * rejected_P.mean(),
            "chosen_logprob": scores.chosen_P.mean(),
            "rejected_logprob": scores.rejected_P.mean(),
            "chosen_logratio": chosen_P.mean(),
            "rejected_logratio": rejected_P.mean(),
            "policy_accuracy": (scores.chosen_P > scores.rejected_P).float().mean(),
            "chosen_tokens": scores.chosen_tokens_P.float().mean(),
            "rejected_tokens": scores.rejected_tokens_P.float().mean(),
        }
    return {name: float(value) for name, value in values.items()}
