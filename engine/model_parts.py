# pyright: basic
# Reason: protocols over torch tensors shared by both implementations of the forward pass.
"""What a forward pass is to the rest of the engine, whichever implementation runs it.

Axes: ``N`` packed tokens, ``B`` rows being sampled, ``D`` hidden size, ``V`` vocabulary, ``R`` LoRA rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from sota_ml_researcher.engine.model_sites import Site
from sota_ml_researcher.engine.packing import PackedTokens


class Pair(NamedTuple):
    """One LoRA pair in compute dtype: A of shape [R, d_in] and B of [d_out, R], with a leading [E] for experts."""

    a: Tensor
    b: Tensor


@dataclass(frozen=True, slots=True)
class ActiveLora:
    """The pairs that take part in a forward pass, by site name; each adds ``scaling * B A x``.

    ``stacked`` is where an implementation keeps what it derives from the pairs.
    """

    pairs: Mapping[str, Pair]
    scaling: float
    stacked: dict[tuple[str, ...], Any] = field(default_factory=dict[tuple[str, ...], Any], compare=False)


@dataclass(frozen=True, slots=True)
class Head:
    """The frozen unembedding: logits = post(h W^T + bias), W of shape [V, D]; ``packed`` is W as oneDNN reads it."""

    name: str
    weight_VD: Tensor
    bias_V: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None
    packed: Tensor | None = None


class DecodeState(Protocol):
    """The key-value cache of the rows being sampled."""

    @property
    def rows(self) -> int:
        """How many rows it holds."""
        ...


class Backbone(Protocol):
    """Embedding, layers and final norm of a frozen base model, with LoRA pairs passed in."""

    head: Head
    dtype: torch.dtype
    device: torch.device

    @property
    def longest_tree(self) -> int:
        """Most tokens of a tree of sequences that ``hidden`` takes; 0 if it takes none (`engine.prefixes`)."""
        ...

    @property
    def rowwise_length(self) -> int:
        """Longest sequence that ``hidden`` takes rowwise, and shared; 0 if it cannot."""
        ...

    def sites(self) -> list[Site]:
        """Every matrix that can be adapted."""
        ...

    def hidden(self, batch: PackedTokens, lora: ActiveLora | None) -> Tensor:
        """Final hidden states [N, D]; differentiable in the pairs of ``lora``."""
        ...

    def prefill(
        self, prompts: Sequence[Tensor], repeats: Sequence[int], room: int, lora: ActiveLora | None
    ) -> tuple[Any, Tensor, Tensor]:
        """Read prompts and make a cache with ``room`` free places a row.

        Returns:
            The cache, with prompt i in ``repeats[i]`` consecutive rows; the hidden states [N, D] of all prompt
            tokens packed; and the last prompt token's hidden states [B, D], a row each.
        """
        ...

    def step(self, state: Any, tokens_B: Tensor, lora: ActiveLora | None) -> Tensor:
        """Append one token a row and return its hidden states [B, D]."""
        ...

    def keep(self, state: Any, rows: Tensor) -> Any:
        """The cache with only ``rows`` (indices) left."""
        ...

    def join(self, state: Any, new: Any) -> Any:
        """The rows of one cache, then those of another one, fresh from ``prefill``."""
        ...

    def cache_bytes(self, tokens: int) -> int:
        """Bytes of cache that ``tokens`` places take."""
        ...

    def parameters(self) -> int:
        """Number of base parameters."""
        ...

    def nbytes(self) -> int:
        """Bytes of memory the weights hold."""
        ...

    def describe(self) -> dict[str, Any]:
        """What ran: for people and for benchmarks."""
        ...
