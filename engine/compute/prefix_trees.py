"""Sequences that begin alike, laid out so that what they share is computed once.

The two answers of a preference pair share their prompt, and so do all answers of a GRPO group. A tree is the shared
prefix followed by what each member has of its own; a token sees the prefix and its own branch. Everything but attention
then costs one token per token of the tree. Axis: ``T`` tokens of one sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_SHORTEST = 8
# Only worth its while if it saves this share of the cost.
_LEAST_GAIN = 0.03


@dataclass(frozen=True, slots=True)
class Tree:
    """Sequences with their first ``prefix`` tokens in common; ``length`` tokens altogether.

    A sequence by itself is a tree of one member without a prefix.
    """

    members: tuple[int, ...]
    prefix: int
    length: int


def plan_trees(sequences: Sequence[NDArray[Any]], hidden_size: int, most: int) -> list[Tree]:
    """Group sequences by what they begin with.

    Attention over a tree looks at pairs of branches that never see each other, so that sharing a short prefix among
    long branches would lose. A token is taken to cost 1, a pair of tokens 1 / ``hidden_size``.

    Args:
        sequences: Token ids.
        hidden_size: Of the model.
        most: Longest tree to make; 0 for none, each sequence then stands alone.
    """
    if most <= 0 or len(sequences) < 2:
        return [Tree((index,), 0, len(tokens)) for index, tokens in enumerate(sequences)]
    order = sorted(range(len(sequences)), key=lambda index: sequences[index].astype(">i8").tobytes())
    trees: list[Tree] = []
    for index in order:
        grown = _grow(trees[-1], index, sequences, hidden_size, most) if trees else None
        if grown is None:
            trees.append(Tree((index,), 0, len(sequences[index])))
        else:
            trees[-1] = grown
    return sorted(trees, key=lambda tree: min(tree.members))


def _grow(tree: Tree, index: int, sequences: Sequence[NDArray[Any]], hidden_size: int, most: int) -> Tree | None:
    """The tree with one more member, if that is cheaper than the two apart."""
    new = sequences[index]
    shared = _common(sequences[tree.members[-1]], new)
    # Every member keeps a token of its own, also where two sequences are equal.
    shared = min(shared, len(new) - 1, *(len(sequences[member]) - 1 for member in tree.members))
    prefix = shared if len(tree.members) == 1 else min(tree.prefix, shared)
    if prefix < _SHORTEST:
        return None
    members = (*tree.members, index)
    length = prefix + sum(len(sequences[member]) - prefix for member in members)
    if length > most:
        return None
    apart = _cost(tree.length, hidden_size) + _cost(len(new), hidden_size)
    if _cost(length, hidden_size) > (1 - _LEAST_GAIN) * apart:
        return None
    return Tree(members, prefix, length)


def _cost(length: int, hidden_size: int) -> float:
    return length + length * length / hidden_size


def _common(first: NDArray[Any], second: NDArray[Any]) -> int:
    """How many tokens two sequences have in common at their beginning."""
    shorter = min(len(first), len(second))
    different = np.flatnonzero(first[:shorter] != second[:shorter])
    return int(different[0]) if len(different) else shorter


def lay_out(
    sequences: Sequence[NDArray[Any]], trees: Sequence[Tree]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], list[NDArray[np.int64]]]:
    """Trees end to end.

    Returns:
        Tokens, positions and branches (0 in a prefix, then 1, 2 ...) of the packed batch, each [N]; and for each
        member of each tree, in order, the packed places of its tokens [T].
    """
    tokens: list[NDArray[Any]] = []
    positions: list[NDArray[np.int64]] = []
    branches: list[NDArray[np.int64]] = []
    places: list[NDArray[np.int64]] = []
    start = 0
    for tree in trees:
        prefix = np.arange(tree.prefix)
        tokens.append(sequences[tree.members[0]][: tree.prefix])
        positions.append(prefix)
        branches.append(np.zeros(tree.prefix, dtype=np.int64))
        free = start + tree.prefix
        for branch, member in enumerate(tree.members, start=1):
            own = sequences[member][tree.prefix :]
            tokens.append(own)
            positions.append(np.arange(tree.prefix, tree.prefix + len(own)))
            branches.append(np.full(len(own), branch, dtype=np.int64))
            places.append(np.concatenate([start + prefix, np.arange(free, free + len(own))]))
            free += len(own)
        start = free
    packed = np.concatenate(tokens).astype(np.int64, copy=False)
    return packed, np.concatenate(positions), np.concatenate(branches), places
