"""The conclusion in words: at most 2 kB for a terminal, a tool's answer, and the top of the report."""

from __future__ import annotations

from collections.abc import Sequence

from .controls import ControlResult
from .results import TUNED, ArmComparison, EvalResult, HumanAgreement, JudgeQuality
from .statistics.estimates import Interval

MAX_BYTES = 2048


def verdict_text(result: EvalResult) -> str:
    """The verdict, what to be careful about, and how sure it is; lines that find no room are left out whole."""
    lines = [_headline(result), *(f"Careful: {warning}." for warning in result.warnings), *_detail(result.main)]
    lines += [_other(c) for c in result.comparisons if c.arm != TUNED]
    lines += [_judge(judge, result.controls) for judge in result.judges]
    if result.judge_agreement_alpha is not None:
        lines.append(f"Agreement of the judges: Krippendorff alpha {result.judge_agreement_alpha:.2f}.")
    lines.append(_missing(result))
    if result.run is not None and result.run.spent_usd is not None:
        lines.append(f"The judges cost about {result.run.spent_usd:.4f} USD.")
    return lines_within(lines, MAX_BYTES)


def lines_within(lines: Sequence[str], limit: int) -> str:
    """As many whole lines as fit into ``limit`` bytes, and where the rest is."""
    rest = "The rest is in metrics.json."
    text = "".join(f"{line}\n" for line in lines)
    kept = list(lines)
    while len(text.encode()) > limit and kept:
        kept.pop()
        text = "".join(f"{line}\n" for line in [*kept, rest])
    return text


def interval_text(interval: Interval | None) -> str:
    """``95% interval 0.53 to 0.61``, or that there is none."""
    if interval is None:
        return "no interval"
    return f"{interval.level:.0%} interval {interval.low:.3f} to {interval.high:.3f}"


def test_text(p_value: float | None) -> str:
    """``exact sign test p 0.012``, or that nothing was decided."""
    return "no pair was decided" if p_value is None else f"exact sign test p {p_value:.2g}"


def _headline(result: EvalResult) -> str:
    main, arms = result.main, result.arms
    named = f"tuned ({_short(arms['tuned'])}) against baseline ({_short(arms['baseline'])})"
    if result.no_verdict_because:
        return f"NO VERDICT: {result.no_verdict_because}. {named}."
    if main.mean is None:
        return f"NO VERDICT: nothing was scored. {named}."
    what = "win rate" if result.mode == "pairwise" else "difference of mean scores (0 to 1)"
    size = f"{what} {main.mean:.3f}, {interval_text(main.interval)}, {main.scored} prompts"
    return f"{result.verdict.upper()}: {named}: {size}."


def _detail(main: ArmComparison) -> list[str]:
    if main.mean is None:
        return []
    test = test_text(main.sign_test_p_value)
    lines = [f"{main.wins} won, {main.ties} tied, {main.losses} lost; {test}."]
    if main.interval:
        lines[0] += f" Interval: {main.interval.method}, {main.independent_units} independent units."
    if main.length:
        lines.append(f"At equal length: {main.length.rate:.3f}, {interval_text(main.length.interval)}.")
    if main.human:
        lines.append(_people(main.human))
    worst = sorted(main.categories, key=lambda c: c.mean)[:3]
    if worst:
        lines.append("Lowest categories: " + ", ".join(f"{c.category} {c.mean:.2f} (n {c.n})" for c in worst) + ".")
    return lines


def _people(human: HumanAgreement) -> str:
    if human.agreement is None:
        return f"Against people: none of {human.labels} labels decides a pair that the judges decided."
    text = f"Against people: {human.agreement:.0%} agreement on {human.labelled} of {human.labels} labelled pairs."
    share = human.corrected_share_of_decided
    if share:
        text += f" Share of decided pairs, corrected: {share.rate:.3f}, {interval_text(share.interval)}."
    return text


def _other(c: ArmComparison) -> str:
    if c.mean is None:
        return f"{c.arm}: nothing was scored."
    corrected = f", Holm p {c.p_value_holm:.2g}" if c.p_value_holm is not None else ""
    test = test_text(c.sign_test_p_value)
    return f"{c.arm} against baseline: {c.verdict}, {c.mean:.3f}, {interval_text(c.interval)}, {test}{corrected}."


def _judge(judge: JudgeQuality, controls: Sequence[ControlResult]) -> str:
    models = [m for m in judge.models if m != judge.name]
    text = f"Judge {judge.name}" + (f" ({', '.join(models)})" if models else "") + ":"
    if judge.consistency is not None:
        text += f" same verdict in both orders {judge.consistency:.0%}, {judge.flips} flips;"
    control = next((c for c in controls if c.judge == judge.name), None)
    if control is not None:
        text += f" {control.canaries_right} of {control.canaries} known pairs right" + _same(control)
    return text + "."


def _same(control: ControlResult) -> str:
    asked = control.same_first + control.same_second + control.same_tie
    if not asked:
        return ""
    if control.repeat_difference is None:
        return f"; an answer beside itself: {control.same_tie} of {asked} ties"
    repeated = f"{control.same_tie} of {asked} alike, mean difference {control.repeat_difference:.3f}"
    return f"; an answer scored twice: {repeated}"


def _missing(result: EvalResult) -> str:
    counts = result.unscored.by_arm
    missing, asked = sum(c.missing for c in counts.values()), sum(c.asked for c in counts.values())
    if not missing:
        return f"Unscored: none of {asked} judgements."
    shares = ", ".join(f"{arm} {c.missing} of {c.asked}" for arm, c in counts.items())
    reasons = ", ".join(f"{why} {n}" for why, n in result.unscored.reasons.items())
    return f"Unscored: {missing} of {asked} judgements, by the arm shown first {shares} ({reasons})."


def _short(model: str) -> str:
    return model if len(model) <= 70 else f"...{model[-67:]}"
