"""The environment that runs programs: what is run, what is shown of it, what is scored, and what is refused."""

import asyncio
from typing import Any, TypeVar

import pytest
from environment_calls import in_environment

from sota_ml_researcher.core.errors import ConfigError
from sota_ml_researcher.rewards.environments import ScriptedPlayer, advance
from sota_ml_researcher.rewards.episodes import Episode
from sota_ml_researcher.rewards.problems import Problem
from sota_ml_researcher.rewards.process_pool import ScoringFailedError
from sota_ml_researcher.rewards.programs import program_in, run
from sota_ml_researcher.rewards.sandbox import modes
from sota_ml_researcher.rewards.scorers import Response, Score
from sota_ml_researcher.training.rl.config import RlConfig, load_rl_settings
from sota_ml_researcher.training.rl.cost import Workload, rl_cost
from sota_ml_researcher.training.rl.plan import plan_rl

T = TypeVar("T")
needs_sandbox = pytest.mark.skipif(modes.isolation().mode is None, reason="no isolation here")
ROW = Problem(40, ({"role": "user", "content": "17 * 23?"},), {"prompt": "17 * 23?", "answer": "391"})


def config_of(environment: Any = "interpreter", **changes: Any) -> RlConfig:
    given = {"base_model": "demo", "train_file": "demo:say_train", "reward_type": "math", "environment": environment}
    return load_rl_settings(None, {**given, **changes}).config


def block(code: str) -> str:
    return f"Let me see.\n```python\n{code}\n```\n"


def played(config: RlConfig, *episodes: list[str], cut: bool = False) -> tuple[list[Episode], list[Score]]:
    async def work(environment: Any) -> tuple[list[Episode], list[Score]]:
        found: list[Episode] = []
        for replies in episodes:
            episode = Episode(await environment.reset(ROW, 5))
            for reply in replies:
                await advance(environment, ROW, episode, Response(reply, len(reply), cut), seed=5)
            found.append(episode)
        return found, await environment.total(ROW, found)

    return in_environment(config, work)


def output(code: str, *, wall_s: float = 10, most: int = 200, **limits: int) -> tuple[str, bool]:
    mode = modes.isolation().mode
    assert mode is not None
    found = asyncio.run(run(code, mode=mode, limits=modes.Limits(**limits), wall_s=wall_s, most=most, seed=3))
    return found.text, found.failed


def test_only_a_block_marked_as_python_is_a_program_and_the_last_one_counts() -> None:
    assert program_in(block("a") + block("b")) == "b\n"
    assert program_in("```py\nx\n```") == program_in("```Python3\nx\n```") == "x\n"
    for answer in ("the answer is 4", "```\n4\n```", "```json\n{}\n```", "```python\nprint(1)"):
        assert program_in(answer) is None


@needs_sandbox
def test_a_program_s_output_is_the_next_message_and_the_answer_after_it_is_scored() -> None:
    episodes, scores = played(config_of(), [block("print(17 * 23)"), "\\boxed{391}"], ["\\boxed{390}"], ["391"])
    first = episodes[0]
    assert [m["content"] for m in first.conversation()[2:]] == ["Output:\n391", "\\boxed{391}"]
    assert [e.stop for e in episodes] == ["completed"] * 3
    assert [score.reward for score in scores] == [1.0, 0.0, 1.0]
    assert dict(scores[0].parts) == {"math": 1.0, "interpreter.programs": 1.0, "interpreter.errors": 0.0}
    assert scores[2].parts["interpreter.programs"] == 0.0


@needs_sandbox
def test_each_turn_costs_what_the_discount_says() -> None:
    config = config_of({"type": "interpreter", "discount": 0.9})
    _, scores = played(config, [block("x"), block("print(391)"), "391"])
    assert scores[0].reward == pytest.approx(0.9**2)
    assert scores[0].parts["interpreter.errors"] == 1.0


@needs_sandbox
def test_a_reply_that_was_cut_runs_nothing() -> None:
    episodes, scores = played(config_of(), [block("print(391)")], cut=True)
    assert (episodes[0].stop, episodes[0].turns[0].messages) == ("", ())
    assert scores[0].reward == 0.0


@needs_sandbox
def test_a_program_is_no_answer_even_if_the_right_number_is_in_it() -> None:
    _, scores = played(config_of(), [block("print(391)")], [block("# 391")] * 3)
    assert [score.reward for score in scores] == [0.0, 0.0]
    assert scores[1].parts["interpreter.programs"] == 3.0


@needs_sandbox
@pytest.mark.parametrize(
    ("code", "shown", "failed"),
    [
        ("print('a'); print('b')", "a\nb", False),
        ("x = 1", "[nothing was printed]", False),
        ("import sys; print('to stderr', file=sys.stderr)", "to stderr", False),
        ("raise SystemExit(3)", "[ended with status 3]", True),
        ("import os; os._exit(0)", "[nothing was printed]", False),
        ("print('x' * 500 + 'end')", "x" * 100 + "\n[cut]\n" + "x" * 97 + "end", False),
        ("if __name__ == '__main__': print('main')", "main", False),
        ("import random; print(random.Random(3).random() == random.random())", "True", False),
    ],
)
def test_what_is_shown_of_a_program(code: str, shown: str, failed: bool) -> None:
    assert output(code) == (shown, failed)


@needs_sandbox
def test_an_error_is_shown_with_the_program_s_own_lines_and_no_others() -> None:
    shown, failed = output("print(1)\ndef f(x):\n    return 1 / x\n\nf(0)", most=1000)
    lines = shown.splitlines()
    assert failed
    assert lines[:2] == ["1", "Traceback (most recent call last):"]
    assert lines[-1] == "ZeroDivisionError: division by zero"
    assert [line for line in lines if "File" in line] == [
        '  File "program.py", line 5, in <module>',
        '  File "program.py", line 3, in f',
    ]
    assert "    return 1 / x" in lines
    assert output("x = (")[0].splitlines()[-1] == "SyntaxError: '(' was never closed"
    assert output("print(input())", most=1000)[0].endswith("EOFError: EOF when reading a line")


@needs_sandbox
@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("while True: pass", "[stopped after 1 s]"),
        ("print('begun', flush=True)\nimport time; time.sleep(60)", "begun\n[stopped after 1 s]"),
        ("import os, time; os.close(1); os.close(2); time.sleep(60)", "[stopped after 1 s]"),
        ("while True: print('x' * 1000)", "x\n[cut]\nx"),
        ("x = 'x' * 10**10", "MemoryError"),
        ("import socket; socket.create_connection(('1.1.1.1', 53), 1)", "OSError"),
        ("open('/usr/x', 'w')", "OSError"),
        ("import os; print(set(os.environ) <= {'HOME', 'LANG', 'LC_CTYPE', 'PATH', 'PYTHONHASHSEED'})", "True"),
        ("import os\ntry:\n    while True: os.fork()\nexcept OSError: print('no more')", "no more"),
    ],
)
def test_a_program_cannot_outstay_flood_or_reach_out(code: str, says: str) -> None:
    shown, _ = output(code, wall_s=1.0 if "stopped" in says else 5.0)
    assert says in shown
    assert len(shown) < 250


def test_a_sandbox_that_does_not_start_is_no_output_of_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sota_ml_researcher.rewards.programs.PROGRAM", modes.Path("/nowhere/program.py"))
    with pytest.raises(ScoringFailedError, match="the sandbox did not start: No such file"):
        asyncio.run(run("print(1)", mode="plain", limits=modes.Limits(), wall_s=10, most=100, seed=0))


@needs_sandbox
def test_a_broken_sandbox_ends_the_episode_without_a_reward(monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of()
    monkeypatch.setattr(modes, "_LAUNCHER", modes.Path("/nowhere/launcher.py"))

    async def work(environment: Any) -> tuple[Episode, Score]:
        episode = Episode(await environment.reset(ROW, 0))
        await advance(environment, ROW, episode, Response(block("print(1)"), 5), seed=0)
        return episode, (await environment.total(ROW, [episode]))[0]

    episode, score = in_environment(config, work)
    assert (episode.stop, score.failed) == ("failed", True)
    assert score.note.startswith("line 40: environment: ")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reward_type": "code"}, "environment interpreter runs the program of a reply"),
        ({"reward_type": None}, "give either reward_type or rewards"),
        ({"environment": {"type": "interpreter", "feedback": "No."}}, "feedback belongs to environment retry"),
        ({"environment": {"type": "interpreter", "script": "x.py"}}, "script belongs to environment custom"),
        ({"environment": {"type": "retry", "max_output_chars": 5}}, "max_output_chars belongs to .* interpreter"),
        ({"environment": {"type": "retry", "timeout_s": 5}}, "timeout_s belongs to environment interpreter or custom"),
        ({"environment": {"type": "interpreter", "max_output_chars": 0}}, r"environment\[max_output_chars\]"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config_of(**changes)


def test_without_isolation_it_runs_only_if_that_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = modes.Isolation(None, "tried for a test")
    monkeypatch.setattr(modes, "isolation", lambda: nothing)
    given = {"base_model": "demo", "train_file": "demo:say_train", "reward_type": "exact", "num_steps": 2}
    given |= {"environment": "interpreter", "max_response_tokens": 8}
    with pytest.raises(ConfigError, match="code cannot be isolated on this machine") as refused:
        plan_rl(load_rl_settings(None, given))
    assert "allow_unsandboxed" in str(refused.value)
    judged = {"reward_type": None, "rewards": [{"type": "preference_model", "checkpoint": "tinker://x"}]}
    with pytest.raises(ConfigError, match="code cannot be isolated on this machine"):
        plan_rl(load_rl_settings(None, {**given, **judged}))
    assert plan_rl(load_rl_settings(None, {**given, "allow_unsandboxed": True})).report is not None


@needs_sandbox
def test_the_probes_answer_at_once() -> None:
    async def work(environment: Any) -> list[Score]:
        return await ScriptedPlayer(environment, 3).score_group(ROW, [Response("391", 1), Response("8", 1)])

    assert [score.reward for score in in_environment(config_of(), work)] == [1.0, 0.0]


def test_the_estimate_counts_what_programs_may_print() -> None:
    given = {"base_model": "demo", "train_file": "demo:say_train", "reward_type": "exact", "num_steps": 2}
    given |= {"batch_size": 4, "group_size": 4, "max_response_tokens": 10, "learning_rate": 1e-4, "eval_every": 0}

    def trained(most: int) -> int:
        config = load_rl_settings(
            None, {**given, "environment": {"type": "interpreter", "max_output_chars": most}}
        ).config
        return rl_cost(config, Workload(prompts=4, prompt_tokens=40, total_steps=2)).usage.train

    # 32 episodes with one message between the two expected turns; 3.5 characters per token
    assert trained(700) - trained(350) == 32 * 100
