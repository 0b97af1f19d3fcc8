"""What common training programs call the same quantity: our runs, tinker-cookbook, TRL, transformers, CSV."""

from __future__ import annotations

from collections.abc import Mapping

# For each quantity the names it is logged under; the first one present in a run is taken.
ALIASES: Mapping[str, tuple[str, ...]] = {
    "train_loss": (
        "train_mean_nll",
        "dpo_loss",
        "loss",
        "train_loss",
        "train/loss",
        "train/nll",
        "training_loss",
        "train_nll",
    ),
    "val_loss": (
        "test/nll",
        "test/dpo_loss",
        "eval_loss",
        "val_loss",
        "eval/loss",
        "val/loss",
        "validation_loss",
        "test_loss",
        "test/loss",
    ),
    "lr": ("learning_rate", "optim/lr", "lr", "train/learning_rate"),
    "grad_norm": (
        "grad_norm",
        "optim/grad_norm",
        "train/grad_norm",
        "gradient_norm",
        "optim/unclipped_grad_l2:mean",
    ),
    "margin": ("margin", "rewards/margins", "train/rewards/margins"),
    "val_margin": ("test/margin", "eval_rewards/margins", "eval/rewards/margins"),
    "accuracy": ("accuracy", "rewards/accuracies", "train/rewards/accuracies"),
    "val_accuracy": ("test/accuracy", "eval_rewards/accuracies", "eval/rewards/accuracies"),
    "chosen_logprob": ("chosen_logratio", "chosen_logprob", "logps/chosen", "train/logps/chosen"),
    "chosen_reward": ("chosen_reward", "rewards/chosen", "train/rewards/chosen"),
    "reward": ("env/all/reward/total", "reward", "train/reward", "rewards/mean", "reward/mean", "mean_reward"),
    "val_reward": (
        "test/env/all/reward/total",
        "eval_reward",
        "test/reward",
        "eval/reward",
        "judge_score",
        "test/judge_score",
        "heldout_reward",
    ),
    "entropy": ("optim/entropy", "entropy", "train/entropy", "policy/entropy", "actor/entropy"),
    "kl": (
        "optim/kl_sample_train_v2",
        "optim/kl_sample_train_v1",
        "kl_sample_train",
        "sampling/sampling_logp_difference/mean",
        "rollout_train_kl",
    ),
    "constant_groups": ("reward/constant_groups", "frac_reward_zero_std", "constant_groups", "frac_constant_groups"),
    "groups_all_good": ("env/all/by_group/frac_all_good", "by_group/frac_all_good"),
    "groups_all_bad": ("env/all/by_group/frac_all_bad", "by_group/frac_all_bad"),
    "length": (
        "response/tokens",
        "env/all/ac_tokens_per_turn",
        "completions/mean_length",
        "response_length",
        "mean_length",
        "response_tokens",
        "completion_length",
    ),
    "truncated": (
        "response/cut",
        "env/all/cut",
        "completions/clipped_ratio",
        "frac_truncated",
        "env/all/frac_truncated",
        "truncated",
    ),
    "step_time": ("time/total", "step_time", "time/step", "step_time_s", "seconds_per_step"),
    "submit_time": ("time/submit_batch",),
    "finish_time": ("time/finish_batch",),
    "tokens": ("num_tokens", "num_loss_tokens", "tokens", "env/all/total_ac_tokens"),
    "loss_tokens": ("num_loss_tokens",),
    "epoch": ("epoch", "train/epoch"),
}
STEP_NAMES = ("step", "global_step", "train/global_step", "_step", "iteration", "iter", "batch")
# What a row of a file with several runs says it belongs to.
RUN_NAMES = ("run_id", "run_name", "job_id", "run")

KNOWN = frozenset(name for names in ALIASES.values() for name in names) | frozenset(STEP_NAMES)
LABELS: Mapping[str, str] = {
    "train_loss": "loss (nats)",
    "val_loss": "held-out loss (nats)",
    "lr": "learning rate",
    "grad_norm": "gradient norm",
    "margin": "margin (nats)",
    "val_margin": "held-out margin (nats)",
    "accuracy": "pair accuracy",
    "val_accuracy": "held-out pair accuracy",
    "chosen_logprob": "log-probability of chosen answers (nats)",
    "chosen_reward": "reward of chosen answers",
    "reward": "reward",
    "val_reward": "held-out reward",
    "entropy": "entropy (nats)",
    "kl": "KL, sampler to trainer (nats)",
    "constant_groups": "share of groups with one reward",
    "length": "answer length (tokens)",
    "truncated": "share of cut answers",
    "step_time": "seconds a step",
    "tokens": "tokens a step",
}
