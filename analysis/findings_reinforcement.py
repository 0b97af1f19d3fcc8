"""What an RL run shows: collapse, constant groups, length drift, a gamed reward, a sampler apart from its trainer."""

from __future__ import annotations

import numpy as np

from .findings import Finding, moved, number, point
from .runs import Run
from .series import Series

_LEAST = 15
_HEAD, _TAIL = (0.0, 0.1), (0.85, 1.0)


def reinforcement_findings(run: Run) -> list[Finding]:
    """Findings on reward, entropy, KL, groups and lengths."""
    reward = run.get("reward", least=_LEAST)
    found = [_entropy_collapse(run), _constant_groups(run), _sampler_drift(run), _truncated(run)]
    if reward is not None:
        hacked = _reward_hacking(run, reward)
        constant = any(f is not None and f.kind == "constant_groups" for f in found)
        found += [_reward_collapse(reward), hacked, None if hacked else _length_drift(run, reward)]
        found.append(None if constant else _reward_flat(reward))
    return [f for f in found if f is not None]


def _entropy_collapse(run: Run) -> Finding | None:
    entropy = run.get("entropy", least=_LEAST)
    if entropy is None:
        return None
    share = number("rl.entropy_collapse.fraction")
    first, end = entropy.level(*_HEAD)[0], entropy.level(*_TAIL)[0]
    if first <= 0 or end >= share * first:
        return None
    below = np.flatnonzero(entropy.smooth < share * first)
    at = int(below[0]) if len(below) else -1
    return Finding(
        "entropy_collapse",
        "error",
        f"Entropy falls from {first:.3g} to {end:.3g} nats, under a tenth of its start from step {entropy.at(at)[0]}.",
        (point(entropy, 0), point(entropy, at)),
        "rl.entropy_collapse.fraction",
        "high",
        "Go back to the checkpoint before that step with learning_rate / 3; if it falls again, clip higher (0.28).",
    )


def _constant_groups(run: Run) -> Finding | None:
    constant = run.get("constant_groups", least=5)
    if constant is None:
        return None
    level = constant.level(0.5, 1.0)[0]
    if level <= number("rl.constant_groups"):
        return None
    good, bad = (run.get(q, least=5) for q in ("groups_all_good", "groups_all_bad"))
    hard = ""
    if good is not None and bad is not None:
        hard = (
            " (mostly all right: too easy)"
            if good.level(0.5, 1.0)[0] > bad.level(0.5, 1.0)[0]
            else (" (mostly all wrong: too hard)")
        )
    return Finding(
        "constant_groups",
        "warn",
        f"{level:.0%} of the groups have one reward throughout{hard}: they teach nothing.",
        (point(constant, -1, median_of_second_half=level),),
        "rl.constant_groups",
        "high",
        "Measure the start model's success by prompt and keep prompts between 10% and 90%; then rerun.",
    )


def _sampler_drift(run: Run) -> Finding | None:
    kl = run.get("kl", least=5)
    if kl is None:
        return None
    level = float(np.median(np.abs(kl.part(0.6, 1.0))))
    if level <= number("rl.kl_mismatch"):
        return None
    first = float(np.median(np.abs(kl.part(0.0, 0.1))))
    return Finding(
        "sampler_drift",
        "warn",
        f"The KL between sampler and trainer is {level:.3g} nats a token (at the start {first:.3g}): they are not the "
        "same model.",
        (point(kl, 0), point(kl, -1)),
        "rl.kl_mismatch",
        "medium",
        "Rerun 20 steps with one substep and a new sampler every step; a KL that stays high means a mismatch of "
        "precision or template.",
    )


def _truncated(run: Run) -> Finding | None:
    cut = run.get("truncated", least=5)
    if cut is None or (level := cut.level(0.7, 1.0)[0]) <= number("rl.truncated"):
        return None
    return Finding(
        "truncated",
        "warn",
        f"{level:.0%} of the answers are cut at the limit: their rewards are noise.",
        (point(cut, -1),),
        "rl.truncated",
        "high",
        "Double max_response_tokens for a few steps; if the share stays, answers grow without end: read some.",
    )


def _reward_collapse(reward: Series) -> Finding | None:
    best = int(np.argmax(reward.smooth))
    peak, first, end = float(reward.smooth[best]), reward.level(*_HEAD)[0], reward.level(*_TAIL)[0]
    gain, noise = peak - first, number("diagnosis.noise") * reward.noise / 2
    lost = peak - end
    after_gain = gain > noise and lost > number("diagnosis.reward_collapse") * gain
    below_start = first - end > noise and moved(reward, head=_HEAD, tail=_TAIL)[1]
    if lost <= noise or not (after_gain or below_start) or best >= 0.9 * len(reward.smooth):
        return None
    step = reward.at(best)[0]
    return Finding(
        "reward_collapse",
        "error",
        f"The reward collapses: {peak:.3g} around step {step}, {end:.3g} at the end (start {first:.3g}).",
        (point(reward, best), point(reward, -1)),
        "diagnosis.reward_collapse",
        "high",
        f"Go on from the checkpoint before step {step} with learning_rate / 3.",
    )


def _reward_hacking(run: Run, reward: Series) -> Finding | None:
    change, beyond = moved(reward, head=_HEAD, tail=_TAIL)
    judged = run.get("val_reward", least=4)
    if not beyond or change <= 0:
        return None
    if judged is not None:
        best = int(np.argmax(judged.smooth))
        end = judged.level(*_TAIL)[0]
        fall = float(judged.smooth[best]) - end
        if fall > number("diagnosis.noise") * judged.noise / 2 and fall > 0.05 * abs(float(judged.smooth[best])):
            return _hacked(
                f"the held-out score falls from {judged.smooth[best]:.3g} (step {judged.at(best)[0]}) to {end:.3g}",
                reward,
                judged,
                best,
            )
        return None
    return _jump(run, reward)


def _jump(run: Run, reward: Series) -> Finding | None:
    """Without a held-out score: a sudden jump of the reward together with one of the length is the usual sign."""
    from .series import change_points

    length = run.get("length", least=_LEAST)
    if length is None:
        return None
    values = reward.reduced.values
    for at in change_points(values, noise=reward.noise):
        before, after = values[max(0, at - 8) : at], values[at : at + 8]
        around = length.reduced.values
        if len(around) != len(values) or len(before) < 3 or len(after) < 3:
            continue
        ratio = float(np.median(around[at : at + 8]) / max(1e-9, np.median(around[max(0, at - 8) : at])))
        leap = float(np.median(after) - np.median(before))
        factor = number("rl.length_drift.factor")
        if leap > 2 * number("diagnosis.noise") * reward.noise and not 1 / factor < ratio < factor:
            step = reward.at(at)[0]
            return _hacked(f"it jumps at step {step} as answers become {ratio:.2g} times as long", reward, length, at)
    return None


def _hacked(sign: str, reward: Series, other: Series, at: int) -> Finding:
    return Finding(
        "reward_hacking",
        "warn",
        f"The reward rises to {reward.level(*_TAIL)[0]:.3g}, but {sign}: it may be gamed.",
        (point(other, at), point(other, -1), point(reward, -1)),
        "diagnosis.reward_hacking",
        "medium",
        "Read 20 of the highest-rewarded samples of the end; sound ones refute it. Else mend the reward and rerun.",
    )


def _length_drift(run: Run, reward: Series) -> Finding | None:
    length = run.get("length", least=_LEAST)
    if length is None:
        return None
    first, end = length.level(*_HEAD)[0], length.level(*_TAIL)[0]
    factor = number("rl.length_drift.factor")
    half = length.level(0.45, 0.55)[0]
    # Length may grow while reward does; drift is growth of a stretch in which the reward stands still.
    late_growth = end > factor**0.5 * half and _stands_still(reward, (0.45, 0.55), _TAIL)
    if end < factor * first or not (late_growth or not _rose(reward, _HEAD, _TAIL)):
        return None
    return Finding(
        "length_drift",
        "warn",
        f"Answers grow from {first:.0f} to {end:.0f} tokens without more reward.",
        (point(length, 0), point(length, -1), point(reward, -1)),
        "rl.length_drift",
        "medium",
        "Rerun with a loss that is not normalised by each answer's length, or an overlong penalty, all else equal.",
    )


def _stands_still(reward: Series, head: tuple[float, float], tail: tuple[float, float]) -> bool:
    """Whether the reward gains nothing beyond the noise, and under a tenth of its gain in the whole run."""
    late, beyond = moved(reward, head=head, tail=tail)
    whole, _ = moved(reward, head=_HEAD, tail=_TAIL)
    return not (beyond and late > 0) and late < 0.1 * max(whole, 0.0)


def _rose(reward: Series, head: tuple[float, float], tail: tuple[float, float]) -> bool:
    change, beyond = moved(reward, head=head, tail=tail)
    return beyond and change > 0


def _reward_flat(reward: Series) -> Finding | None:
    change, beyond = moved(reward, head=_HEAD, tail=_TAIL)
    best = float(np.max(reward.smooth)) - reward.level(*_HEAD)[0]
    if beyond or best > number("diagnosis.noise") * reward.noise / 2 or len(reward) < 2 * _LEAST:
        return None
    return Finding(
        "reward_flat",
        "warn",
        f"The reward does not move: {reward.level(*_HEAD)[0]:.3g} at the start, {reward.level(*_TAIL)[0]:.3g} at the "
        f"end (change {change:+.2g}, noise {reward.noise:.2g}).",
        (point(reward, 0), point(reward, -1)),
        "diagnosis.reward_flat",
        "medium",
        "Sample the start model 16 times on 50 prompts: success near 0% or 100% confirms it; change the difficulty. "
        "Otherwise learning_rate x 3.",
    )
