"""What an RL run shows: collapse, constant groups, length drift, a gamed reward, a sampler apart from its trainer."""

from __future__ import annotations

import numpy as np

from ..doctrine.rules import number
from .findings import HEAD, TAIL, RunFinding, finding, moved, noise_factor, point, rose
from .runs import Run
from .series import Series, change_points

_LEAST = 15
# Metrics are kept in single precision.
_ROUNDING = 1e-6


def reinforcement_findings(run: Run) -> list[RunFinding]:
    """Findings on reward, entropy, KL, groups and lengths."""
    reward = run.get("reward", least=_LEAST)
    constant = _constant_groups(run)
    findings = [_entropy_collapse(run), constant, _sampler_drift(run), _truncated(run)]
    if reward is not None:
        hacked = _reward_hacking(run, reward)
        findings += [_reward_collapse(reward), hacked, None if hacked else _length_drift(run, reward)]
        findings.append(None if constant else _reward_flat(reward))
    return [f for f in findings if f is not None]


def _entropy_collapse(run: Run) -> RunFinding | None:
    entropy = run.get("entropy", least=_LEAST)
    if entropy is None:
        return None
    share = number("rl.entropy_collapse.fraction")
    first, end = entropy.level(*HEAD)[0], entropy.level(*TAIL)[0]
    if first <= 0 or end >= share * first:
        return None
    below = np.flatnonzero(entropy.smooth < share * first)
    at = int(below[0]) if len(below) else -1
    return finding(
        "entropy_collapse",
        f"Entropy falls from {first:.3g} to {end:.3g} nats, under {share:.0%} of its start from step "
        f"{entropy.at(at)[0]}.",
        (point(entropy, 0), point(entropy, at)),
        "Go back to the checkpoint before that step with learning_rate / 3; if it falls again, clip higher (0.28).",
    )


def _constant_groups(run: Run) -> RunFinding | None:
    constant = run.get("constant_groups", least=5)
    if constant is None:
        return None
    level = constant.level(0.5, 1.0)[0]
    if level <= number("rl.constant_groups"):
        return None
    good, bad = (run.get(q, least=5) for q in ("groups_all_good", "groups_all_bad"))
    hard = ""
    if good is not None and bad is not None:
        too_easy = good.level(0.5, 1.0)[0] > bad.level(0.5, 1.0)[0]
        hard = " (mostly all right: too easy)" if too_easy else " (mostly all wrong: too hard)"
    return finding(
        "constant_groups",
        f"{level:.0%} of the groups have one reward throughout{hard}: they teach nothing.",
        (point(constant, -1, median_of_second_half=level),),
        "Measure the start model's success by prompt and keep prompts between 10% and 90%; then rerun.",
    )


def _sampler_drift(run: Run) -> RunFinding | None:
    kl = run.get("kl", least=5)
    if kl is None:
        return None
    level = float(np.median(np.abs(kl.part(0.6, 1.0))))
    if level <= number("rl.kl_mismatch"):
        return None
    first = float(np.median(np.abs(kl.part(0.0, 0.1))))
    return finding(
        "sampler_drift",
        f"The KL between sampler and trainer is {level:.3g} nats per token (at the start {first:.3g}): they are not "
        "the same model.",
        (point(kl, 0), point(kl, -1)),
        "Rerun 20 steps with one substep and a new sampler every step; a KL that stays high means a mismatch of "
        "precision or template.",
    )


def _truncated(run: Run) -> RunFinding | None:
    cut = run.get("truncated", least=5)
    if cut is None or (level := cut.level(0.7, 1.0)[0]) <= number("rl.truncated") * (1 + _ROUNDING):
        return None
    return finding(
        "truncated",
        f"{level:.0%} of the answers are cut at the limit: their rewards are noise.",
        (point(cut, -1),),
        "Double max_response_tokens for a few steps; if the share stays, answers grow without end: read some.",
    )


def _reward_collapse(reward: Series) -> RunFinding | None:
    best = int(np.argmax(reward.smooth))
    peak, first, end = float(reward.smooth[best]), reward.level(*HEAD)[0], reward.level(*TAIL)[0]
    gain, noise = peak - first, noise_factor() * reward.noise / 2
    lost = peak - end
    after_gain = gain > noise and lost > number("diagnosis.reward_collapse") * gain
    below_start = first - end > noise and moved(reward)[1]
    if lost <= noise or not (after_gain or below_start) or best >= 0.9 * len(reward.smooth):
        return None
    step = reward.at(best)[0]
    return finding(
        "reward_collapse",
        f"The reward collapses: {peak:.3g} around step {step}, {end:.3g} at the end (start {first:.3g}).",
        (point(reward, best), point(reward, -1)),
        f"Go on from the checkpoint before step {step} with learning_rate / 3.",
    )


def _reward_hacking(run: Run, reward: Series) -> RunFinding | None:
    if not rose(reward):
        return None
    judged = run.get("val_reward", least=4)
    if judged is None:
        return _jump(run, reward)
    best = int(np.argmax(judged.smooth))
    peak, end = float(judged.smooth[best]), judged.level(*TAIL)[0]
    if peak - end <= max(noise_factor() * judged.noise / 2, 0.05 * abs(peak)):
        return None
    sign = f"the held-out score falls from {peak:.3g} (step {judged.at(best)[0]}) to {end:.3g}"
    return _hacked(sign, reward, judged, best)


def _jump(run: Run, reward: Series) -> RunFinding | None:
    """Without a held-out score, a sudden jump of the reward together with one of the length is the usual sign."""
    length = run.get("length", least=_LEAST)
    if length is None:
        return None
    values, tokens = reward.reduced.values, length.reduced.values
    if len(tokens) != len(values):
        return None
    factor = number("rl.length_drift.factor")
    for at in change_points(values, noise=reward.noise):
        before, after = slice(max(0, at - 8), at), slice(at, at + 8)
        if len(values[before]) < 3 or len(values[after]) < 3:
            continue
        ratio = float(np.median(tokens[after]) / max(1e-9, np.median(tokens[before])))
        leap = float(np.median(values[after]) - np.median(values[before]))
        if leap > 2 * noise_factor() * reward.noise and not 1 / factor < ratio < factor:
            step = reward.at(at)[0]
            return _hacked(f"it jumps at step {step} as answers become {ratio:.2g} times as long", reward, length, at)
    return None


def _hacked(sign: str, reward: Series, other: Series, at: int) -> RunFinding:
    return finding(
        "reward_hacking",
        f"The reward rises to {reward.level(*TAIL)[0]:.3g}, but {sign}: it may be gamed.",
        (point(other, at), point(other, -1), point(reward, -1)),
        "Read 20 of the highest-rewarded samples of the end; sound ones refute it. Else fix the reward and rerun.",
    )


def _length_drift(run: Run, reward: Series) -> RunFinding | None:
    length = run.get("length", least=_LEAST)
    if length is None:
        return None
    first, end = length.level(*HEAD)[0], length.level(*TAIL)[0]
    factor = number("rl.length_drift.factor")
    half = length.level(0.45, 0.55)[0]
    # Length may grow while reward does; drift is growth of a stretch in which the reward stands still.
    late_growth = end > factor**0.5 * half and _stands_still(reward, (0.45, 0.55))
    if end < factor * first or not (late_growth or not rose(reward)):
        return None
    return finding(
        "length_drift",
        f"Answers grow from {first:.0f} to {end:.0f} tokens without more reward.",
        (point(length, 0), point(length, -1), point(reward, -1)),
        "Rerun with a loss that is not normalised by each answer's length, or an overlong penalty, all else equal.",
    )


def _stands_still(reward: Series, since: tuple[float, float]) -> bool:
    """Whether the reward gains nothing beyond the noise after a stretch, and under a tenth of the run's gain."""
    late, beyond = moved(reward, since)
    gain, _ = moved(reward)
    return not (beyond and late > 0) and late < 0.1 * max(gain, 0.0)


def _reward_flat(reward: Series) -> RunFinding | None:
    change, beyond = moved(reward)
    best = float(np.max(reward.smooth)) - reward.level(*HEAD)[0]
    if beyond or best > noise_factor() * reward.noise / 2 or len(reward) < 2 * _LEAST:
        return None
    return finding(
        "reward_flat",
        f"The reward does not move: {reward.level(*HEAD)[0]:.3g} at the start, {reward.level(*TAIL)[0]:.3g} at the "
        f"end (change {change:+.2g}, noise {reward.noise:.2g}).",
        (point(reward, 0), point(reward, -1)),
        "Sample the start model 16 times on 50 prompts: success near 0% or 100% confirms it; change the difficulty. "
        "Otherwise learning_rate x 3.",
    )
