from typing import Any

from tinker_cookbook.rl.types import RLDataset

from sota_ml_researcher.training.rl.overlap import OverlappingData


class Numbered(RLDataset):
    """Batches of two, each group the number of its place."""

    def get_batch(self, index: int) -> Any:
        return [2 * index, 2 * index + 1]

    def __len__(self) -> int:
        return 3


def test_the_last_batch_goes_on_until_the_steps_are_taken() -> None:
    taken: list[Any] = []
    data = OverlappingData(Numbered(), lambda: len(taken) >= 9)
    for index in range(len(data)):
        for group in data.get_batch(index):
            taken.append(group)  # noqa: PERF402 - how many are taken so far is what ends it
    assert taken == list(range(9))


def test_a_run_that_never_takes_its_steps_ends_all_the_same() -> None:
    data = OverlappingData(Numbered(), lambda: False)
    assert len(list(data.get_batch(2))) == 2 + 2 * 3 * 2
