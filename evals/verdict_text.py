"""The verdict in at most two kilobytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

MAX_BYTES = 2048
_MAIN = "tuned"


def verdict_text(metrics: Mapping[str, Any], run: Mapping[str, Any], controls: Sequence[Mapping[str, Any]]) -> str:
    """What was found, how sure it is, and what to be careful about."""
    main = next(c for c in metrics["comparisons"] if c["arm"] == _MAIN)
    lines = [_headline(metrics, main), *_detail(metrics, main)]
    lines += [_other(c) for c in metrics["comparisons"] if c["arm"] != _MAIN]
    lines += [_judge(judge, controls) for judge in metrics["judges"]]
    if metrics["judge_agreement_alpha"] is not None:
        lines.append(f"Agreement of the judges: Krippendorff alpha {metrics['judge_agreement_alpha']:.2f}.")
    lines.append(_missing(metrics))
    if run.get("spent_usd") is not None:
        lines.append(f"The judges cost about {run['spent_usd']:.4f} USD.")
    lines += [f"Careful: {warning}." for warning in metrics["warnings"]]
    return _cut("\n".join(lines) + "\n")


def interval_text(interval: Mapping[str, Any] | None) -> str:
    """``95% interval 0.53 to 0.61``, or that there is none."""
    if interval is None:
        return "no interval"
    return f"{interval['level']:.0%} interval {interval['low']:.3f} to {interval['high']:.3f}"


def _headline(metrics: Mapping[str, Any], main: Mapping[str, Any]) -> str:
    arms = metrics["arms"]
    named = f"tuned ({_short(arms['tuned'])}) against baseline ({_short(arms['baseline'])})"
    if metrics["no_verdict_because"]:
        return f"NO VERDICT: {metrics['no_verdict_because']}. {named}."
    if main["mean"] is None:
        return f"NO VERDICT: nothing was scored. {named}."
    what = "win rate" if metrics["mode"] == "pairwise" else "difference of mean scores (0 to 1)"
    word = str(metrics["verdict"]).upper()
    return f"{word}: {named}: {what} {main['mean']:.3f}, {interval_text(main['interval'])}, {main['scored']} prompts."


def _detail(metrics: Mapping[str, Any], main: Mapping[str, Any]) -> list[str]:
    if main["mean"] is None:
        return []
    p = main.get("sign_test_p_value")
    test = f"exact sign test p {p:.2g}" if p is not None else "no pair was decided"
    lines = [f"{main['wins']} won, {main['ties']} tied, {main['losses']} lost; {test}."]
    if main["interval"]:
        lines[0] += f" Interval: {main['interval']['method']}, {main['independent_units']} independent units."
    if main["length"]:
        lines.append(f"At equal length: {main['length']['rate']:.3f}, {interval_text(main['length']['interval'])}.")
    human = main.get("human")
    if human:
        lines.append(f"Against people ({human['labelled']} labels): {human['agreement']:.0%} agreement.")
        corrected = human["corrected_share_of_decided"]
        if corrected:
            lines[-1] += f" Share of decided pairs, corrected: {corrected['rate']:.3f}, {interval_text(corrected)}."
    worst = sorted(main["categories"], key=lambda c: c["mean"])[:3]
    if worst:
        lines.append(
            "Lowest categories: " + ", ".join(f"{c['category']} {c['mean']:.2f} (n {c['n']})" for c in worst) + "."
        )
    return lines


def _other(c: Mapping[str, Any]) -> str:
    if c["mean"] is None:
        return f"{c['arm']}: nothing was scored."
    holm = c["p_value_holm"]
    corrected = f", Holm p {holm:.2g}" if holm is not None else ""
    return f"{c['arm']} against baseline: {c['verdict']}, {c['mean']:.3f}, {interval_text(c['interval'])}{corrected}."


def _judge(judge: Mapping[str, Any], controls: Sequence[Mapping[str, Any]]) -> str:
    control = next((c for c in controls if c["judge"] == judge["name"]), None)
    text = f"Judge {judge['name']}"
    models = [m for m in judge["models"] if m != judge["name"]]
    text += f" ({', '.join(models)})" if models else ""
    text += ":"
    if judge["consistency"] is not None:
        text += f" same verdict in both orders {judge['consistency']:.0%}, {judge['flips']} flips;"
    if control is not None:
        text += f" {control['canaries_right']} of {control['canaries']} known pairs right"
        text += _same(control)
    return text + "."


def _same(control: Mapping[str, Any]) -> str:
    asked = control["same_first"] + control["same_second"] + control["same_tie"]
    if not asked:
        return ""
    if control["repeat_difference"] is None:
        return f"; an answer beside itself: {control['same_tie']} of {asked} ties"
    return (
        f"; an answer scored twice: {control['same_tie']} of {asked} alike, "
        f"mean difference {control['repeat_difference']:.3f}"
    )


def _missing(metrics: Mapping[str, Any]) -> str:
    counts = metrics["unscored"]["by_arm"]
    total, asked = (sum(c[k] for c in counts.values()) for k in ("missing", "asked"))
    if not total:
        return f"Unscored: none of {asked} judgements."
    shares = ", ".join(f"{arm} {c['missing']} of {c['asked']}" for arm, c in counts.items())
    reasons = ", ".join(f"{why} {n}" for why, n in metrics["unscored"]["reasons"].items())
    return f"Unscored: {total} of {asked} judgements, by the arm shown first {shares} ({reasons})."


def _short(model: str) -> str:
    return model if len(model) <= 70 else f"...{model[-67:]}"


def _cut(text: str) -> str:
    raw = text.encode()
    return text if len(raw) <= MAX_BYTES else raw[: MAX_BYTES - 4].decode("utf-8", "ignore") + "...\n"
