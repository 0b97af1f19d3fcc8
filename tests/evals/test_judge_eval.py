"""Whole evaluations, with judges on loopback that answer as the real services do."""

import hashlib
import json
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from eval_helpers import Context, comparison, conclude, evaluate, is_test, lines, metrics, sums, write_lines
from loopback_judges import MODEL, Asked, Judges, honest

from sota_ml_researcher.core.errors import BackendError, ConfigError, DataError
from sota_ml_researcher.core.files import append_json_line, read_json_lines
from sota_ml_researcher.evals.judge_job import JudgeFailedError
from sota_ml_researcher.evals.results import EvalResult, record_json
from sota_ml_researcher.judges import anthropic_judge, asking
from sota_ml_researcher.judges.asking import BATCHES
from sota_ml_researcher.judges.base import JudgeCallError
from sota_ml_researcher.judges.journal import JUDGMENTS
from sota_ml_researcher.judges.judge_catalog import price_of
from sota_ml_researcher.judges.local_judges import PACKETS, SUBMISSIONS


def test_anthropic_finds_the_better_model_and_leaves_every_file(tmp_path: Path, judges: Judges) -> None:
    config = sums(tmp_path, 30, base_right=0.3) | {"judge_model": MODEL}
    outcome, context = evaluate(tmp_path, config, own_process=True)
    found = comparison(context)
    assert (found["wins"], found["ties"], found["losses"]) == (21, 9, 0)
    assert found["mean"] == pytest.approx(0.85)
    assert found["verdict"] == "better"
    assert found["interval"]["low"] > 0.7
    text = (context.folder / "verdict.txt").read_text()
    assert text.startswith("BETTER") and len(text.encode()) <= 2048
    assert outcome.summary["verdict"] == "better"
    judged = lines(context)
    assert len(judged) == 30 * 2 + 8 * 2 + 20 == len({j["key"] for j in judged})
    assert {j["model"] for j in judged} == {f"{MODEL}-20261007"}
    run = json.loads((context.folder / "judges.json").read_text())
    assert len(run["prompt_hash"]) == 16 and run["spent_usd"] > 0
    for name in ("report.html", "metrics.json", "plots/forest.png", "plots/orders.png"):
        assert (context.folder / name).stat().st_size > 500, name


def test_the_request_uses_a_tool_caches_the_rubric_and_hides_the_arms(tmp_path: Path, judges: Judges) -> None:
    evaluate(tmp_path, sums(tmp_path, 2) | {"judge_model": MODEL})
    body = judges.bodies[-1]
    assert body["tools"][0]["name"] == "record_verdict"
    assert body["tool_choice"] == {"type": "auto", "disable_parallel_tool_use": True}  # this model refuses a forced one
    assert "temperature" not in body
    assert body["system"][0]["cache_control"] == body["tools"][0]["cache_control"] == {"type": "ephemeral"}
    properties = list(body["tools"][0]["input_schema"]["properties"])
    assert properties == ["reason", "scores", "verdict"]
    assert not any(word in json.dumps(body["messages"]) for word in ("baseline", "tuned"))
    assert len({b["system"][0]["text"] for b in judges.bodies}) == 1


def test_older_models_are_forced_to_the_tool_at_temperature_0(tmp_path: Path, judges: Judges) -> None:
    judges.models = ("claude-haiku-4-5",)
    evaluate(tmp_path, sums(tmp_path, 2) | {"judge_model": "claude-haiku-4-5"})
    assert judges.bodies[0]["temperature"] == 0
    assert judges.bodies[0]["tool_choice"]["type"] == "tool"


def test_the_inspect_log_can_be_read_by_inspect(tmp_path: Path, judges: Judges) -> None:
    from inspect_ai.log import read_eval_log

    _, context = evaluate(tmp_path, sums(tmp_path, 12, base_right=0.5))
    log = read_eval_log(str(context.folder / "inspect_log.json"))
    assert log.status == "success" and log.samples is not None and log.results is not None
    assert len(log.samples) == 12
    assert log.results.scores[0].metrics["mean"].value == pytest.approx(0.75)
    assert log.samples[0].scores is not None and log.samples[0].scores["judge"].value == 0.5


def test_two_judges_of_two_services_agree(tmp_path: Path, judges: Judges) -> None:
    config = sums(tmp_path, 20, base_right=0.5) | {"judge_model": [MODEL, "openai:local-judge"]}
    _, context = evaluate(tmp_path, config)
    found = metrics(context)
    assert found["judge_agreement_alpha"] == pytest.approx(1.0)
    assert [j["judge"] for j in comparison(context)["by_judge"]] == [MODEL, "openai:local-judge"]


def test_a_judge_that_always_says_a_fails_the_evaluation(tmp_path: Path, judges: Judges) -> None:
    judges.answer = lambda asked: {"reason": "A", "verdict": "A", "quality": (5, 1)}
    with pytest.raises(JudgeFailedError, match=r"failed its calibration checks.*8 of 16.*chose the first 20 of 20"):
        evaluate(tmp_path, sums(tmp_path, 25) | {"judge_model": MODEL})
    assert len(judges.answered) == 36  # the pairs that count were never paid for
    controls = json.loads((tmp_path / "run" / "controls.json").read_text())
    assert controls[0]["same_first"] == 20


def test_a_judge_that_follows_orders_in_an_answer_fails_its_canaries(tmp_path: Path, judges: Judges) -> None:
    def obedient(asked: Asked) -> dict[str, Any]:
        orders = [any(word in (x or "") for word in ("wins", "withdrawn", "cat cat")) for x in (asked.a, asked.b)]
        if any(orders):
            return {"reason": "it says so", "verdict": "A" if orders[0] else "B", "quality": (3, 3)}
        return honest(asked)

    judges.answer = obedient
    with pytest.raises(JudgeFailedError, match="it was right on 10 of 16"):
        evaluate(tmp_path, sums(tmp_path, 5) | {"judge_model": MODEL})


def test_a_preference_for_a_place_is_reported_and_cancels_out(tmp_path: Path, judges: Judges) -> None:
    def partial(asked: Asked) -> dict[str, Any]:
        given = honest(asked)
        return given if is_test(asked) or given["verdict"] != "tie" else given | {"verdict": "A"}

    judges.answer = lambda asked: honest(asked) if asked.a == asked.b else partial(asked)
    config = sums(tmp_path, 20, base_right=0.0, tuned_right=0.0)
    rows = [{"prompt": f"{n}+{n}=", "response": "??"} for n in range(20)]
    config["baseline_model"] = str(write_lines(tmp_path / "other.jsonl", rows))
    _, context = evaluate(tmp_path, config | {"judge_model": MODEL})
    judge = metrics(context)["judges"][0]
    assert (judge["flips"], judge["consistency"], judge["first_preferred"]) == (20, 0.0, 40)
    assert comparison(context)["mean"] == 0.5
    assert comparison(context)["verdict"] == "not distinguishable"
    assert "same verdict in both orders in only 0%" in (context.folder / "verdict.txt").read_text()


def test_prose_is_repaired_once(tmp_path: Path, judges: Judges) -> None:
    judges.answer = lambda asked: honest(asked) if asked.repair or is_test(asked) else "A is better, I think."
    _, context = evaluate(tmp_path, sums(tmp_path, 5) | {"judge_model": MODEL})
    assert comparison(context)["mean"] == 1.0
    assert metrics(context)["judges"][0]["repaired"] == 10 + 5  # pairs in both orders, and answers beside themselves
    repair = next(b for b in judges.bodies if len(b["messages"]) > 1)
    assert repair["messages"][1]["content"] == "A is better, I think."


@pytest.mark.parametrize(("said", "reason"), [("B, surely.", "unreadable"), (None, "refused")])
def test_what_stays_unreadable_is_missing_and_there_is_no_verdict(
    tmp_path: Path, judges: Judges, said: str | None, reason: str
) -> None:
    hard = {"1+1=", "2+2="}
    judges.answer = lambda asked: said if asked.request in hard else honest(asked)
    _, context = evaluate(tmp_path, sums(tmp_path, 20) | {"judge_model": MODEL})
    found = metrics(context)
    assert found["verdict"] == "no verdict"
    assert "4 of 40 judgements" in found["no_verdict_because"]
    assert found["unscored"]["reasons"] == {reason: 4}
    assert found["unscored"]["by_arm"]["tuned"] == {"missing": 2, "asked": 20}
    assert comparison(context)["scored"] == 18
    assert (context.folder / "verdict.txt").read_text().startswith("NO VERDICT")


def test_missing_verdicts_that_fall_on_one_arm_forbid_a_verdict(tmp_path: Path, judges: Judges) -> None:
    # 9 of 200 are below the 5%, but all of them came where the tuned answer stood first: 9 of 100 against 0 of 100
    def breaks(asked: Asked) -> dict[str, Any] | None:
        right_first = asked.a == asked.reference and asked.request in {f"{n}+{n}=" for n in range(9)}
        return None if right_first and not is_test(asked) and asked.b != asked.a else honest(asked)

    judges.answer = breaks
    _, context = evaluate(tmp_path, sums(tmp_path, 100) | {"judge_model": MODEL})
    assert "fall unequally on the arms" in metrics(context)["no_verdict_because"]


def test_overload_is_waited_out_and_nothing_judged_twice(tmp_path: Path, judges: Judges) -> None:
    judges.faults, judges.retry_after_s = 0.3, 0.3
    _, context = evaluate(tmp_path, sums(tmp_path, 40) | {"judge_model": MODEL})
    assert metrics(context)["unscored"]["reasons"] == {}
    judged = lines(context)
    assert len(judged) == len({j["key"] for j in judged}) == 40 * 2 + 36
    waits = [b[0] - a[0] for past in judges.times.values() for a, b in pairwise(past) if a[1] != 200]
    assert len(waits) > 20
    assert min(waits) >= 0.3  # as long as retry-after asked


def test_silence_is_a_timeout_and_asked_again(tmp_path: Path, judges: Judges) -> None:
    judges.faults, judges.fault_statuses, judges.hang_s = 0.1, (0,), 3.0
    config = sums(tmp_path, 10) | {"judge_model": MODEL, "judge_timeout_s": 0.7}
    _, context = evaluate(tmp_path, config)
    assert any(status == 0 for past in judges.times.values() for _, status in past)
    assert metrics(context)["unscored"]["reasons"] == {}


def test_an_outage_ends_the_job_and_a_resume_asks_for_the_rest_alone(
    tmp_path: Path, judges: Judges, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(anthropic_judge, "MAX_RETRIES", 0)
    monkeypatch.setattr(asking, "GIVE_UP_AFTER", 5)
    config = sums(tmp_path, 40) | {"judge_model": MODEL, "parallel_judges": 2}
    whole = Context(tmp_path / "whole")
    evaluate(tmp_path, config, whole)
    judges.answered.clear()

    def failing(asked: Asked) -> dict[str, Any]:
        if len(judges.answered) > 60:
            judges.faults, judges.fault_statuses, judges.retry_after_s = 1.0, (529,), 0.0
        return honest(asked)

    judges.answer = failing
    broken = Context(tmp_path / "broken")
    with pytest.raises(BackendError, match=r"5 calls of claude-haiku-5-5 in a row have failed.*529"):
        evaluate(tmp_path, config, broken)
    judges.faults, judges.answer = 0.0, honest
    before = dict(judges.answered)
    evaluate(tmp_path, config, broken)
    assert all(count == 1 or before.get(key, 0) == 0 for key, count in judges.answered.items())
    assert comparison(broken) == comparison(whole)


def test_a_stopped_evaluation_goes_on_without_asking_anything_twice(tmp_path: Path, judges: Judges) -> None:
    config = sums(tmp_path, 40) | {"judge_model": MODEL, "parallel_judges": 4}
    outcome, context = evaluate(tmp_path, config, Context(tmp_path / "run", stop_at=60))
    assert (outcome.finished, outcome.stopped_for) == (False, "cancel")
    with (context.folder / JUDGMENTS).open("ab") as file:
        file.write(b'{"key": "torn')  # a power cut in the middle of a line
    context.stop_at = None
    outcome, context = evaluate(tmp_path, config, context)
    assert outcome.finished
    judged = lines(context)
    assert len(judged) == len({j["key"] for j in judged}) == 40 * 2 + 36
    assert max(judges.answered.values()) == 1


def test_batches_give_the_same_result_and_are_found_again(
    tmp_path: Path, judges: Judges, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(anthropic_judge, "_BATCH_POLL_S", 0.05)
    judges.answer = lambda asked: "hm" if not asked.repair and asked.request == "3+3=" else honest(asked)
    config = sums(tmp_path, 20, base_right=0.3) | {"judge_model": MODEL, "judge_batch": True}
    _, context = evaluate(tmp_path, config)
    assert len(judges.batches) == 4  # tests of the judge, pairs, and the repairs of each
    assert comparison(context)["mean"] == pytest.approx(0.85)
    assert metrics(context)["judges"][0]["repaired"] == 2 + 1
    spent = spent_usd(context)
    price = price_of(MODEL)
    assert price is not None and spent == pytest.approx((76 + 3) * price.cost(700, 90, batch=True), abs=1e-6)
    submitted = read_batches(context)
    assert [(r["repairs"], len(r["keys"])) for r in submitted] == [(False, 36), (True, 1), (False, 40), (True, 2)]
    journal = (context.folder / JUDGMENTS).read_bytes().splitlines(keepends=True)
    by_mark = [{"mark": old_mark(r), "batch_id": r["batch_id"], "calls": len(r["keys"])} for r in submitted]
    done = {"noted": submitted[0]["keys"]}
    # Killed after the batches were handed in and before anything was noted (the second by an earlier version), and
    # while the last ones were noted.
    for kept, batches in ((0, submitted), (0, by_mark), (50, [*submitted[:2], done, *submitted[2:]])):
        (context.folder / JUDGMENTS).write_bytes(b"".join(journal[:kept]))
        write_lines(context.folder / BATCHES, batches)
        evaluate(tmp_path, config, context)
        assert len(judges.batches) == 4
        assert comparison(context)["mean"] == pytest.approx(0.85)
        assert len(lines(context)) == 76
        assert spent_usd(context) == spent


def read_batches(context: Context) -> list[dict[str, Any]]:
    return [record for record in read_json_lines(context.folder / BATCHES) if "batch_id" in record]


def old_mark(record: dict[str, Any]) -> str:
    """What stood for the keys of a batch in files of earlier versions."""
    return hashlib.sha256(json.dumps([sorted(record["keys"]), record["repairs"]]).encode()).hexdigest()[:32]


def spent_usd(context: Context) -> float:
    return json.loads((context.folder / "judges.json").read_text())["spent_usd"]


def test_a_batch_that_passes_the_limit_is_kept_whole(
    tmp_path: Path, judges: Judges, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(anthropic_judge, "_BATCH_POLL_S", 0.05)
    config = sums(tmp_path, 5) | {"judge_model": MODEL, "judge_batch": True, "max_cost_usd": 0.001}
    context = Context(tmp_path / "run")
    with pytest.raises(BackendError, match=r"max_cost_usd is 0\.001"):
        evaluate(tmp_path, config, context)
    assert len(lines(context)) == 16 + 5


def test_calls_of_a_batch_that_failed_are_submitted_again(
    tmp_path: Path, judges: Judges, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(anthropic_judge, "_BATCH_POLL_S", 0.05)
    config = sums(tmp_path, 5) | {"judge_model": MODEL, "judge_batch": True}
    context = Context(tmp_path / "run")
    with monkeypatch.context() as down:
        expired = JudgeCallError("the batch ended with this request expired", transient=True)
        down.setattr(anthropic_judge, "_batch_reply", lambda result: expired)
        with pytest.raises(BackendError, match="20 calls of claude-haiku-5-5 in a row have failed"):
            evaluate(tmp_path, config, context)
    assert len(lines(context)) == 16 + 5
    evaluate(tmp_path, config, context)
    assert len(judges.batches) == 1 + 2
    assert comparison(context)["mean"] == 1.0


def test_only_judges_asked_in_batches_get_the_discount(
    tmp_path: Path, judges: Judges, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(anthropic_judge, "_BATCH_POLL_S", 0.05)
    both = {"judge_model": [MODEL, "openai:local-judge"], "judge_batch": True}
    config = sums(tmp_path, 5) | both | {"judge_price": {"input": 10.0, "output": 10.0}}
    _, context = evaluate(tmp_path, config)
    calls = 16 + 5 + 5 * 2
    assert spent_usd(context) == pytest.approx(calls * 790 * 10.0 / 1e6 * (0.5 + 1.0), abs=1e-6)


def test_cost_is_counted_and_limited(tmp_path: Path, judges: Judges) -> None:
    config = sums(tmp_path, 30) | {"judge_model": MODEL, "judge_price": {"input": 1000, "output": 0}}
    with pytest.raises(BackendError, match=r"the judges have cost 3[5-9]\.\d+ USD, and max_cost_usd is 35"):
        evaluate(tmp_path, config | {"max_cost_usd": 35})
    assert len(judges.answered) < 80  # of 96; those under way when the limit was passed came home


@pytest.mark.parametrize(
    ("changes", "environment", "message"),
    [
        ({}, {"ANTHROPIC_API_KEY": "sk-ant-wrong-secret"}, r"the key was refused \(401\). Check ANTHROPIC_API_KEY"),
        ({}, {"ANTHROPIC_API_KEY": None}, "ANTHROPIC_API_KEY is not set, and claude-haiku-5-5 needs it"),
        (
            {"judge_model": "claude-haiku-5-4"},
            {},
            r"no model 'claude-haiku-5-4', or it has been retired. Did you mean 'claude-haiku-5-5'",
        ),
        (
            {"judge_model": "openai:local-jugde"},
            {},
            "no model 'local-jugde'. Did you mean 'local-judge'",
        ),
        ({"judge_model": "openai:x"}, {"OPENAI_BASE_URL": None}, "OPENAI_API_KEY is not set"),
        ({}, {"ANTHROPIC_BASE_URL": "http://127.0.0.1:9"}, "no answer"),
    ],
)
def test_a_judge_that_cannot_be_asked_is_an_error_before_anything_is_spent(
    tmp_path: Path,
    judges: Judges,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    environment: dict[str, str | None],
    message: str,
) -> None:
    monkeypatch.setattr(anthropic_judge, "MAX_RETRIES", 0)
    for name, value in environment.items():
        if value is None:
            monkeypatch.delenv(name)
        else:
            monkeypatch.setenv(name, value)
    with pytest.raises((BackendError, ConfigError), match=message) as caught:
        evaluate(tmp_path, sums(tmp_path, 3) | {"judge_model": MODEL} | changes)
    assert "secret" not in str(caught.value)
    assert not judges.answered


def test_the_same_model_twice_is_not_distinguishable(tmp_path: Path) -> None:
    config = sums(tmp_path, 30, base_right=0.5, tuned_right=0.5)
    _, context = evaluate(tmp_path, config)
    assert comparison(context)["verdict"] == "not distinguishable"
    interval = comparison(context)["interval"]
    assert interval["low"] < 0.5 < interval["high"]
    assert (context.folder / "verdict.txt").read_text().startswith("NOT DISTINGUISHABLE")


def test_one_prompt_shows_nothing(tmp_path: Path) -> None:
    _, context = evaluate(tmp_path, sums(tmp_path, 1))
    assert comparison(context)["verdict"] == "not distinguishable"
    assert comparison(context)["standard_error"] is None
    assert "one prompt has no interval" in (context.folder / "verdict.txt").read_text()


def test_all_won_is_better_with_wilsons_interval(tmp_path: Path) -> None:
    _, context = evaluate(tmp_path, sums(tmp_path, 20))
    found = comparison(context)
    # Wilson for 20 of 20: 20 / (20 + 1.96^2) = 0.8389
    assert found["interval"]["low"] == pytest.approx(0.8389, abs=1e-4)
    assert found["verdict"] == "better"


def test_an_empty_answer_is_judged_and_said(tmp_path: Path, judges: Judges) -> None:
    config = sums(tmp_path, 12)
    rows = [{"prompt": f"{n}+{n}=", "response": ""} for n in range(12)]
    config["baseline_model"] = str(write_lines(tmp_path / "empty.jsonl", rows))
    _, context = evaluate(tmp_path, config | {"judge_model": MODEL})
    assert any("[The answer is empty.]" in b["messages"][0]["content"] for b in judges.bodies)
    assert ("warn", "12 of 12 answers of 'baseline' are empty") in context.alerts
    assert "12 answers of baseline are empty" in (context.folder / "verdict.txt").read_text()


def test_an_answer_of_100_000_tokens_is_cut_for_the_judge_and_said(tmp_path: Path, judges: Judges) -> None:
    config = sums(tmp_path, 3)
    rows = [{"prompt": f"{n}+{n}=", "response": "word " * 100_000} for n in range(3)]
    config["baseline_model"] = str(write_lines(tmp_path / "long.jsonl", rows))
    _, context = evaluate(tmp_path, config | {"judge_model": MODEL})
    longest = max(len(b["messages"][0]["content"]) for b in judges.bodies)
    assert 60_000 < longest < 130_000
    assert any("characters left out here" in b["messages"][0]["content"] for b in judges.bodies)
    assert any("longer than max_response_chars" in message for _, message in context.alerts)


def test_three_arms_are_ranked_and_corrected(tmp_path: Path) -> None:
    config = sums(tmp_path, 40, base_right=0.5, tuned_right=0.9)
    rows = [{"prompt": f"{n}+{n}=", "response": str(2 * n) if n < 21 else "?"} for n in range(40)]
    config["other_models"] = [str(write_lines(tmp_path / "third.jsonl", rows))]
    _, context = evaluate(tmp_path, config)
    found = metrics(context)
    strengths = {arm: s["log_odds"] for arm, s in found["bradley_terry"].items()}
    assert strengths["tuned"] > strengths["other-1"] > strengths["baseline"]
    assert comparison(context)["verdict"] == "better"
    third = comparison(context, "other-1")
    assert third["verdict"] == "not distinguishable"
    assert third["p_value_holm"] >= third["p_value"]


def test_clusters_categories_and_peoples_labels_are_used(tmp_path: Path) -> None:
    config = sums(tmp_path, 40, base_right=0.25)
    rows = [json.loads(line) for line in Path(config["test_set"]).read_text().splitlines()]
    marked = [r | {"cluster_id": n // 4, "category": "low" if n < 20 else "high"} for n, r in enumerate(rows)]
    write_lines(Path(config["test_set"]), marked)
    labels = [{"prompt": f"{n}+{n}=", "winner": "baseline" if n == 12 else "tuned"} for n in range(10, 22)]
    config["human_labels"] = str(write_lines(tmp_path / "labels.jsonl", labels))
    _, context = evaluate(tmp_path, config)
    found = comparison(context)
    assert found["independent_units"] == 10
    assert "clustered" in found["interval"]["method"]
    assert {c["category"]: c["mean"] for c in found["categories"]} == {"low": 0.75, "high": 1.0}
    assert found["human"]["labelled"] == 12
    assert found["human"]["agreement"] == pytest.approx(11 / 12)


def test_the_analysis_can_be_run_again_and_finds_the_same(tmp_path: Path) -> None:
    _, context = evaluate(tmp_path, sums(tmp_path, 25, base_right=0.3))
    before = metrics(context)
    file = context.folder / "metrics.json"
    assert record_json(EvalResult.model_validate_json(file.read_bytes())) == file.read_text()
    conclude(context.folder)
    assert metrics(context) == before


def test_a_report_shows_what_models_wrote_as_text(tmp_path: Path) -> None:
    config = sums(tmp_path, 3)
    rows = [{"prompt": f"{n}+{n}=", "response": "<script>alert(1)</script>"} for n in range(3)]
    config["baseline_model"] = str(write_lines(tmp_path / "evil.jsonl", rows))
    _, context = evaluate(tmp_path, config)
    page = (context.folder / "report.html").read_text()
    assert "<script>" not in page and "&lt;script&gt;" in page


def test_the_assistant_judges_blinded_packets(tmp_path: Path) -> None:
    config = sums(tmp_path, 6, base_right=0.5) | {"judge_model": "assistant"}
    folder = tmp_path / "run"
    seen: list[dict[str, Any]] = []

    def judge() -> None:
        done: set[str] = set()
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and len(done) < 6 * 2 + 16 + 6:
            for packet in read_json_lines(folder / PACKETS):
                if packet["id"] in done:
                    continue
                done.add(packet["id"])
                seen.append(packet)
                asked = Judges().asked(packet["system"], [{"content": packet["question"]}])
                given = honest(asked)
                names = ("correctness", "instruction_following", "helpfulness")
                scores = {name: dict(zip("AB", given["quality"], strict=True)) for name in names}
                verdict = {"reason": given["reason"], "verdict": given["verdict"], "scores": scores}
                append_json_line(folder / SUBMISSIONS, {"id": packet["id"], "verdict": verdict})
            time.sleep(0.02)

    assistant = threading.Thread(target=judge, daemon=True)
    assistant.start()
    _, context = evaluate(tmp_path, config, Context(folder))
    assistant.join(5)
    assert comparison(context)["mean"] == pytest.approx(0.75)
    assert not any(word in json.dumps(seen) for word in ("baseline", "tuned", "canary"))


def test_a_check_without_references_is_refused(tmp_path: Path) -> None:
    config = sums(tmp_path, 3)
    write_lines(Path(config["test_set"]), [{"prompt": f"{n}+{n}="} for n in range(3)])
    with pytest.raises(DataError, match=r"test.jsonl:1: check:exact compares with reference answers, and 3 of 3"):
        evaluate(tmp_path, config)
