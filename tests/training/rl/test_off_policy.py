"""Which weights a step's groups are sampled from, and which prompts they are, with recorded samples."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sota_ml_researcher.data.mixtures import Mix
from sota_ml_researcher.rewards.problems import Problem
from sota_ml_researcher.training.loop import Run
from sota_ml_researcher.training.rl.config import load_rl_settings
from sota_ml_researcher.training.rl.method import Reinforcement

STEPS = 10


class Client:
    """Its sampler is the number of updates taken."""

    updates = 0

    async def sampler(self) -> int:
        return self.updates


class Recorder:
    """Plays nothing: a group is the weights, the prompt and the seed it was asked for."""

    async def play(self, sampler: int, problem: Problem, *, samples: int, seed: int) -> tuple[int, int, int]:
        await asyncio.sleep(0)
        return sampler, problem.line, seed

    def penalized(self, group: Any) -> Any:
        return group

    async def close(self) -> None: ...


def sampled(tmp_path: Path, steps: Sequence[int], **changes: Any) -> list[list[tuple[int, int, int]]]:
    given = {"base_model": "demo", "train_file": "demo:say_train", "reward_type": "exact", "batch_size": 3, **changes}
    config = load_rl_settings(None, given).config
    problems = [Problem(line, ({"role": "user", "content": "?"},), {}) for line in range(5)]
    anything: Any = Recorder()
    context: Any = type("Context", (), {"folder": tmp_path})
    run_of_steps = Run(context, config, anything, "chat_template", STEPS)
    method = Reinforcement(run_of_steps, config, anything, problems, Mix.whole(5), [])
    client: Any = Client()

    async def run() -> list[Any]:
        groups: list[Any] = []
        for step in steps:
            client.updates = step
            groups.append(await method.batch(client, step))
        await method.close()
        return groups

    return asyncio.run(run())


def weights(groups: list[list[tuple[int, int, int]]]) -> list[int]:
    assert all(len({of for of, _, _ in group}) == 1 for group in groups)
    return [group[0][0] for group in groups]


def test_each_step_is_sampled_from_the_weights_it_trains_unless_told_otherwise(tmp_path: Path) -> None:
    assert weights(sampled(tmp_path, range(STEPS), checkpoint_every=4)) == list(range(STEPS))


def test_steps_are_sampled_ahead_and_never_across_a_checkpoint(tmp_path: Path) -> None:
    groups = sampled(tmp_path, range(STEPS), checkpoint_every=4, max_steps_off_policy=2)
    assert weights(groups) == [0, 0, 0, 1, 4, 4, 4, 5, 8, 8]
    assert weights(sampled(tmp_path, range(STEPS), checkpoint_every=0, max_steps_off_policy=2))[-3:] == [5, 6, 7]


def test_a_resumed_run_samples_what_the_whole_one_did(tmp_path: Path) -> None:
    settings = {"checkpoint_every": 4, "max_steps_off_policy": 3}
    assert sampled(tmp_path, range(4, STEPS), **settings) == sampled(tmp_path, range(STEPS), **settings)[4:]


def test_prompts_and_seeds_are_those_of_the_step_whatever_is_sampled_ahead(tmp_path: Path) -> None:
    on_policy = sampled(tmp_path, range(STEPS), checkpoint_every=4)
    ahead = sampled(tmp_path, range(STEPS), checkpoint_every=4, max_steps_off_policy=2)
    assert [[rest for _, *rest in group] for group in ahead] == [[rest for _, *rest in group] for group in on_policy]
    lines = [line for group in on_policy for _, line, _ in group]
    assert all(sorted(lines[epoch * 5 : epoch * 5 + 5]) == list(range(5)) for epoch in range(6))
    assert len({seed for group in on_policy for _, _, seed in group}) == STEPS * 3
