"""Environments of several turns: their settings, their files, what they say, and which tokens are trained."""

from pathlib import Path
from typing import Any, TypeVar

import pytest
from environment_calls import in_environment
from tiny_models import CHATML, write_tiny_model

from sota_ml_researcher.core.errors import ConfigError, DataError
from sota_ml_researcher.doctrine.rules import rule
from sota_ml_researcher.models.chat import ChatRenderer
from sota_ml_researcher.models.renderers import load_renderer
from sota_ml_researcher.rewards.environments import Retry, Script, ScriptedPlayer, advance
from sota_ml_researcher.rewards.episodes import Episode
from sota_ml_researcher.rewards.problems import Problem
from sota_ml_researcher.rewards.sandbox.modes import isolation
from sota_ml_researcher.rewards.scorers import Response, Score
from sota_ml_researcher.training.rl.config import RlConfig, load_rl_settings
from sota_ml_researcher.training.rl.cost import Workload, rl_cost
from sota_ml_researcher.training.rl.plan import plan_rl

T = TypeVar("T")
needs_sandbox = pytest.mark.skipif(isolation().mode is None, reason="no isolation here")

GAME = """
import random

def reset(row):
    return {"messages": "Guess my number", "state": {"tries": 0, "luck": random.random()}}

def step(messages, reply, row, state):
    tries = state["tries"] + 1
    right = reply.strip() == row["answer"]
    said = "right" if right else f"wrong, try {tries}"
    parts = {"tried": 1}
    return {"messages": said, "reward": 1.0 * right, "done": right, "state": {**state, "tries": tries}, "parts": parts}
"""


def config_of(**changes: Any) -> RlConfig:
    given = {"base_model": "demo", "train_file": "demo:say_train", "reward_type": "exact", **changes}
    return load_rl_settings(None, given).config


def problem(**row: Any) -> Problem:
    return Problem(40, ({"role": "user", "content": str(row.get("prompt", "1+1="))},), row)


def scripted(tmp_path: Path, text: str, **changes: Any) -> RlConfig:
    path = tmp_path / "game.py"
    path.write_text(text)
    environment = {"type": "custom", "script": str(path), **changes}
    return config_of(reward_type=None, environment=environment)


async def played(environment: Any, row: Problem, *replies: str) -> Episode:
    episode = Episode(await environment.reset(row, 5))
    for reply in replies:
        await advance(environment, row, episode, Response(reply, len(reply)), seed=5)
    return episode


# Settings


def test_the_short_forms_and_the_defaults_are_what_the_rules_say() -> None:
    retry = config_of(environment="retry").environment
    custom = config_of(environment="mine.py", reward_type=None).environment
    assert retry is not None and custom is not None
    assert (retry.type, retry.max_turns) == ("retry", rule("rl.turns").value)
    assert retry.per_turn == rule("rl.retry_discount").value
    assert (custom.type, custom.script, custom.per_turn) == ("custom", "mine.py", 1.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"environment": "retri"}, "environment: .*Did you mean 'retry'"),
        ({"environment": {"type": "custom"}}, "environment custom needs script"),
        ({"environment": {"type": "retry", "script": "x.py"}}, "script belongs to environment custom"),
        ({"environment": {"type": "retry", "max_turns": 1}}, r"environment\[max_turns\]: .*greater than or equal to 2"),
        ({"environment": {"type": "retry", "turns": 3}}, r"environment\[turns\]"),
        ({"environment": "retry", "reward_type": None}, "give either reward_type or rewards"),
        (
            {
                "environment": "retry",
                "reward_type": None,
                "rewards": [{"type": "preference_model", "checkpoint": "tinker://x"}],
            },
            "a preference_model compares answers",
        ),
        ({"environment": {"type": "retry", "max_trajectory_tokens": 200}}, "leaves no room for a prompt"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config_of(**changes)


# Files


@needs_sandbox
def test_a_file_keeps_its_state_scores_each_turn_and_repeats_itself_for_a_seed(tmp_path: Path) -> None:
    config, row = scripted(tmp_path, GAME), problem(answer="7")

    async def work(environment: Script) -> tuple[Episode, Episode, list[Score]]:
        one = await played(environment, row, "3", "7")
        two = await played(environment, row, "4")
        return one, two, await environment.total(row, [one, two])

    one, two, scores = in_environment(config, work)
    assert [m["content"] for m in one.conversation()] == ["Guess my number", "3", "wrong, try 1", "7", "right"]
    assert (one.stop, two.stop) == ("completed", "")
    assert [score.reward for score in scores] == [1.0, 0.0]
    assert scores[0].parts == {"environment": 1.0, "environment.tried": 2.0}
    assert one.opening.state["luck"] == two.opening.state["luck"]  # the same seed


@needs_sandbox
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def step(messages, reply, row)\n    pass", "game.py: this environment cannot be used: line 1: expected ':'"),
        ("x = 1", "there is no function named step"),
        ("def step(reply):\n    return {}", r"step must take \(messages, reply, row\)"),
        (
            "def step(messages, reply, row):\n    return {'done': True}\ndef reset():\n    return 'x'",
            r"reset must take \(row\)",
        ),
        ("import nothing_of_the_kind", "it fails when it is loaded: line 1: ModuleNotFoundError"),
    ],
)
def test_a_file_that_cannot_be_used_stops_the_plan(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "game.py").write_text(text)
    given = {"base_model": "demo", "train_file": "demo:say_train", "max_response_tokens": 8}
    with pytest.raises(ConfigError, match=message):
        plan_rl(load_rl_settings(None, {**given, "environment": str(tmp_path / "game.py")}))


@needs_sandbox
@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return 1.0", "step must return a dict .*; it returned float"),
        ("return {'reward': 1}", "neither messages nor done: True"),
        ("return {'done': 1}", "done is int"),
        ("return {'mesages': 'x'}", "the key 'mesages'; known: messages, reward, done, state, parts"),
        ("return {'done': True, 'reward': float('nan')}", "reward is nan, and a finite number is needed"),
        ("return {'done': True, 'reward': 'good'}", r"reward is str \('good'\)"),
        ("return {'messages': [{'role': 'assistant', 'content': 'x'}]}", "only the model speaks as the assistant"),
        ("return {'messages': [3]}", r"messages\[0\] must be"),
        ("return {'done': True, 'state': {1, 2}}", "state cannot be kept"),
        ("return {'done': True, 'parts': {'a': 'b'}}", r"parts\[a\] is str"),
        ("return {'done': row['nothing']}", "line 40: environment: step: line 2: KeyError: 'nothing'"),
        ("raise SystemExit", "SystemExit"),
        ("while True: pass", "no answer within 0.5 s"),
    ],
)
def test_what_a_step_does_wrong_is_said_and_the_episode_has_no_reward(tmp_path: Path, body: str, message: str) -> None:
    config = scripted(tmp_path, f"def step(messages, reply, row):\n    {body}\n", timeout_s=0.5)
    row = problem(answer="7")

    async def work(environment: Script) -> tuple[Episode, Score]:
        episode = await played(environment, row, "x")
        return episode, (await environment.total(row, [episode]))[0]

    episode, score = in_environment(config, work)
    assert episode.stop == "failed"
    assert score.failed
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(score.note)


@needs_sandbox
def test_a_row_that_no_episode_can_begin_with_is_named_before_the_job_starts(tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text('{"prompt": "a", "answer": "1"}\n{"prompt": "b"}\n')
    script = tmp_path / "game.py"
    script.write_text(
        "def reset(row):\n    return row['answer']\ndef step(messages, reply, row):\n    return {'done': True}\n"
    )
    given = {"base_model": "demo", "train_file": str(data), "environment": str(script), "max_response_tokens": 8}
    with pytest.raises(DataError, match="line 2: environment: reset: line 2: KeyError: 'answer'"):
        plan_rl(load_rl_settings(None, given))


@needs_sandbox
def test_the_probes_play_whole_episodes(tmp_path: Path) -> None:
    kind = "def step(messages, reply, row):\n    return {'messages': 'go on', 'reward': 0.3}\n"
    (tmp_path / "kind.py").write_text(kind)
    given = {"base_model": "demo", "train_file": "demo:say_train", "max_response_tokens": 8, "num_steps": 2}
    plan = plan_rl(load_rl_settings(None, {**given, "environment": str(tmp_path / "kind.py")}))
    assert plan.report is not None
    assert {probe.share for probe in plan.report.probes} == {0.9}  # three turns of 0.3
    assert any("the probe 'empty answer' earns 90%" in warning for warning in plan.warnings)


# Retry


def test_a_wrong_answer_may_be_mended_for_half_the_reward() -> None:
    config, row = config_of(environment={"type": "retry", "feedback": "No."}), problem(answer="7")

    async def work(environment: Retry) -> tuple[list[Episode], list[Score]]:
        episodes = [await played(environment, row, *replies) for replies in (["7"], ["3", "7"], ["1", "2", "3"])]
        return episodes, await environment.total(row, episodes)

    episodes, scores = in_environment(config, work)
    assert [score.reward for score in scores] == [1.0, 0.5, 0.0]
    assert [episode.stop for episode in episodes] == ["completed", "completed", ""]
    assert episodes[1].turns[0].messages[0]["content"] == "No."


@needs_sandbox
def test_after_wrong_code_the_model_is_shown_the_test_that_failed() -> None:
    config = config_of(reward_type="code", environment="retry")
    row = problem(tests="assert add(1, 2) == 3")

    async def work(environment: Retry) -> Episode:
        return await played(environment, row, "def add(a, b):\n    return a", "def add(a, b):\n    return a + b")

    episode = in_environment(config, work)
    assert episode.turns[0].messages[0]["content"] == (
        "That is not right. Try again.\na test failed: assert add(1, 2) == 3"
    )
    assert episode.stop == "completed"


def test_a_check_that_breaks_ends_the_episode_without_a_reward() -> None:
    config = config_of(
        reward_type=None,
        rewards=[{"type": "regex", "pattern": "(a+)+b", "timeout_s": 0.5}],
        environment="retry",
    )
    row = problem()

    async def work(environment: Retry) -> tuple[Episode, Score]:
        episode = await played(environment, row, "a" * 40)
        return episode, (await environment.total(row, [episode]))[0]

    episode, score = in_environment(config, work)
    assert (episode.stop, score.failed) == ("failed", True)
    assert "no answer within 0.5 s" in score.note


# Tokens


@pytest.fixture(scope="module")
def renderer(tmp_path_factory: pytest.TempPathFactory) -> ChatRenderer:
    return load_renderer(str(write_tiny_model(tmp_path_factory.mktemp("model"))))


HISTORY = [{"role": "user", "content": "hello"}]
ADDED = [{"role": "user", "content": "again"}]


def test_the_next_prompt_keeps_what_was_sampled_token_by_token(renderer: ChatRenderer) -> None:
    from sota_ml_researcher.training.rl.turns import next_prompt

    prompt = renderer.generation_prompt(HISTORY)
    letters = [renderer.render_many([[*HISTORY, {"role": "assistant", "content": c}]])[0].tokens for c in "world"]
    # One token a letter, as no tokenizer would write the word; and the token that ends the turn.
    sampled = [tokens[len(prompt)] for tokens in letters] + [renderer.stop[0]]
    assert renderer.decode(sampled) == "world"
    found = next_prompt(renderer, [*prompt, *sampled], HISTORY, "world", ADDED)
    whole = renderer.generation_prompt([*HISTORY, {"role": "assistant", "content": "world"}, *ADDED])
    assert found[: len(prompt) + len(sampled)] == [*prompt, *sampled]
    assert found != whole
    assert renderer.text_of(found) == renderer.text_of(whole)


def test_a_template_that_rewrites_history_is_rendered_anew(tmp_path: Path) -> None:
    from sota_ml_researcher.training.rl.turns import next_prompt

    forgets = CHATML.replace("{{ m.content }}", "{{ m.content if loop.last or m.role == 'user' else '(forgotten)' }}")
    renderer = load_renderer(str(write_tiny_model(tmp_path / "model", template=forgets)))
    prompt = renderer.generation_prompt(HISTORY)
    found = next_prompt(renderer, [*prompt, 1, 2, 3], HISTORY, "world", ADDED)
    assert "(forgotten)" in renderer.text_of(found)
    assert found[: len(prompt) + 3] != [*prompt, 1, 2, 3]


def group_of(config: RlConfig, renderer: ChatRenderer, row: Problem, replies: list[str]) -> Any:
    """An episode as training plays it, with a policy that says these replies."""
    from tinker_cookbook.completers import TokensWithLogprobs

    from sota_ml_researcher.training.rl.rollouts import roll_out
    from sota_ml_researcher.training.rl.turns import EpisodeContext, make_turn_envs

    waiting = list(replies)

    async def policy(prompt: Any, stop: Any, samples: int, seed: int) -> list[TokensWithLogprobs]:
        said = [{"role": "user", "content": "x"}, {"role": "assistant", "content": waiting.pop(0)}]
        rendered = renderer.render_many([said])[0]
        tokens = [t for t, w in zip(rendered.tokens, rendered.weights, strict=True) if w]
        return [TokensWithLogprobs(tokens=tokens, maybe_logprobs=[-0.5] * len(tokens), stop_reason="stop")]

    async def work(environment: Any) -> Any:
        assert config.environment is not None
        context = EpisodeContext(
            config.environment, config.max_response_tokens, renderer, environment, stopped=lambda: False
        )
        (env,) = await make_turn_envs(context, row, samples=1, seed=1)
        (trajectory,) = await roll_out([env], policy, 1)
        return env, trajectory

    return in_environment(config, work)


def test_an_episode_is_one_sequence_in_which_the_model_s_words_are_trained(renderer: ChatRenderer) -> None:
    from tinker_cookbook.rl.data_processing import trajectory_to_data

    config = config_of(environment={"type": "retry", "feedback": "No."}, max_response_tokens=8)
    env, trajectory = group_of(config, renderer, problem(answer="7"), ["3", "7"])
    assert [t.episode_done for t in trajectory.transitions] == [False, True]
    assert trajectory.stop_reason == "completed"
    assert [turn.score.reward for turn in env.episode.turns] == [0.0, 1.0]
    (datum,) = trajectory_to_data(trajectory, 1.0)
    targets = datum.loss_fn_inputs["target_tokens"].data
    mask = datum.loss_fn_inputs["mask"].data
    advantages = datum.loss_fn_inputs["advantages"].data
    trained = renderer.text_of([t for t, m in zip(targets, mask, strict=True) if m])
    assert trained == "3<|im_end|>7<|im_end|>"
    assert [a != 0 for a in advantages] == [m != 0 for m in mask]
    whole = renderer.text_of([datum.model_input.to_ints()[0], *targets])
    assert whole.endswith("3<|im_end|>\n<|im_start|>user\nNo.<|im_end|>\n<|im_start|>assistant\n7<|im_end|>")


def test_an_episode_ends_at_its_turns_and_at_its_tokens(renderer: ChatRenderer) -> None:
    row = problem(answer="7")
    config = config_of(environment="retry", max_response_tokens=8)
    _, trajectory = group_of(config, renderer, row, ["1", "2", "3", "4"])
    assert (len(trajectory.transitions), trajectory.stop_reason) == (3, "max_turns")
    config = config_of(environment={"type": "retry", "max_trajectory_tokens": 60}, max_response_tokens=8)
    _, trajectory = group_of(config, renderer, row, ["1", "2", "3", "4"])
    assert (len(trajectory.transitions), trajectory.stop_reason) == (1, "context_overflow")


@needs_sandbox
def test_an_opening_that_breaks_costs_no_sample(tmp_path: Path, renderer: ChatRenderer) -> None:
    text = "def reset(row):\n    return row['no']\ndef step(messages, reply, row):\n    return {'done': True}\n"
    env, trajectory = group_of(scripted(tmp_path, text), renderer, problem(answer="7"), [])
    assert trajectory.stop_reason == "failed"
    assert "reset: line 2: KeyError: 'no'" in env.episode.broken


def test_the_estimate_knows_of_turns() -> None:
    given = {"base_model": "demo", "train_file": "demo:say_train", "reward_type": "exact", "num_steps": 2}
    given |= {"batch_size": 4, "group_size": 4, "max_response_tokens": 10, "learning_rate": 1e-4, "eval_every": 0}
    work = Workload(prompts=4, prompt_tokens=40, total_steps=2)
    one = rl_cost(load_rl_settings(None, given).config, work).usage
    silent = {"type": "retry", "max_turns": 3, "show_errors": False, "feedback": "x" * 7}
    three = rl_cost(load_rl_settings(None, {**given, "environment": silent}).config, work).usage
    # 32 episodes of prompts of 10; expected answers of 5 tokens, 2 turns of the 1 to 3, 10 tokens said between two.
    assert (one.sample, three.sample) == (32 * 5, 32 * 5 * 2)
    assert (one.train, three.train) == (32 * (10 + 5 - 1), 32 * (10 + 5 * 2 + 10 - 1))
    assert (one.prefill, three.prefill) == (8 * 10, 8 * 10 + 32 * (10 + (10 + 10) / 2))


def test_the_same_words_each_turn_are_what_a_probe_says() -> None:
    config, row = config_of(environment="retry"), problem(answer="7")

    async def work(environment: Retry) -> list[Score]:
        return await ScriptedPlayer(environment, 3).score_group(row, [Response("7", 1), Response("8", 1)])

    assert [score.reward for score in in_environment(config, work)] == [1.0, 0.0]
