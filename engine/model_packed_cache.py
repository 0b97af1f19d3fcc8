# pyright: basic
# Reason: tensor arithmetic on torch's loosely typed operators.
"""Keys and values of the rows being sampled, each row with a length of its own.

Axes: ``B`` rows, ``J`` key heads, ``G`` query heads a key head, ``P`` places of a row, ``E`` head size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sota_ml_researcher.engine.model_packed_attention import Heads

_GROW = 64


class Cache:
    """One [B, J, P, E] tensor of keys and one of values a layer; P grows as the rows do."""

    def __init__(
        self,
        layers: int,
        lengths: Sequence[int],
        repeats: Sequence[int],
        room: int,
        heads: Heads,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._prompt_lengths = list(lengths)
        self._repeats = list(repeats)
        self.rows = sum(repeats)
        self._most = max(lengths) + room
        self._places = min(max(lengths) + _GROW, self._most)
        shape = (self.rows, heads.key, self._places, heads.size)
        # Zeros, not empty memory: a masked place still enters a product, and 0 * nan would be nan.
        self._keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(layers)]
        self._values = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(layers)]
        per_row = [length for length, count in zip(lengths, repeats, strict=True) for _ in range(count)]
        # The position of the newest token of each row; ``advance`` moves on to the next.
        self.positions_B = torch.tensor(per_row, device=device) - 1
        self.longest = max(lengths)
        self._shortest = min(lengths)
        self._mask_BP: Tensor | None = None

    def fill(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Copy the packed prompts' keys and values [N, J, E] into every row that continues them."""
        row = token = 0
        for length, count in zip(self._prompt_lengths, self._repeats, strict=True):
            for cache, new in ((self._keys[layer], keys), (self._values[layer], values)):
                cache[row : row + count, :, :length] = new[token : token + length].transpose(0, 1)
            row += count
            token += length

    def advance(self) -> None:
        """Open the next place of every row."""
        self.positions_B = self.positions_B + 1
        self.longest += 1
        self._shortest += 1
        if self.longest > self._places:
            self._grow()
        self._mask_BP = None

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, heads: Heads) -> Tensor:
        """Store this step's k, v [B, J, E] and return attention of q [B, H, E] over each row so far: [B, H E]."""
        keys, values = self._keys[layer], self._values[layer]
        if self._shortest == self.longest:
            keys[: self.rows, :, self.longest - 1] = k
            values[: self.rows, :, self.longest - 1] = v
        else:
            every = torch.arange(self.rows, device=k.device)
            keys[every, :, self.positions_B] = k.to(keys.dtype)
            values[every, :, self.positions_B] = v.to(values.dtype)
        flat = (self.rows * heads.key, self._places, heads.size)
        seen_keys = keys[: self.rows].view(flat)[:, : self.longest]
        seen_values = values[: self.rows].view(flat)[:, : self.longest]
        queries = q.to(keys.dtype).mul(heads.scale).view(self.rows * heads.key, heads.group, heads.size)
        scores = torch.bmm(queries, seen_keys.transpose(1, 2))
        mask_BP = self._mask(heads.window, scores)
        if mask_BP is not None:
            scores = scores.view(self.rows, heads.query, -1).add_(mask_BP.unsqueeze(1)).view_as(scores)
        return torch.bmm(torch.softmax(scores, dim=-1), seen_values).view(self.rows, -1)

    def _mask(self, window: int | None, like: Tensor) -> Tensor | None:
        """Additive mask [B, P] of places beyond a row's end or behind its window; None if there are none."""
        if self._shortest == self.longest and (window is None or window >= self.longest):
            return None
        if window is not None or self._mask_BP is None:
            behind = self.positions_B.unsqueeze(1) - torch.arange(self.longest, device=like.device)
            hidden = (behind < 0) if window is None else (behind < 0) | (behind >= window)
            mask = like.new_zeros(hidden.shape).masked_fill_(hidden, float("-inf"))
            if window is not None:
                return mask
            self._mask_BP = mask
        return self._mask_BP

    def keep(self, rows: Tensor) -> Cache:
        """Leave only ``rows``, in their order. Only rows whose place changes are copied."""
        place = torch.arange(len(rows), device=rows.device)
        moved = (rows != place).nonzero().squeeze(-1)
        if len(moved):
            for tensor in (*self._keys, *self._values):
                tensor[moved] = tensor[rows[moved]]
        self.positions_B = self.positions_B[rows]
        self.rows = len(rows)
        self.longest = int(self.positions_B.max()) + 1
        self._shortest = int(self.positions_B.min()) + 1
        self._mask_BP = None
        return self

    def _grow(self) -> None:
        places = min(max(self.longest, self._places + max(_GROW, self._places // 2)), self._most)
        for tensors in (self._keys, self._values):
            for index, old in enumerate(tensors):
                new = old.new_zeros((self.rows, old.shape[1], places, old.shape[3]))
                new[:, :, : self._places] = old[: self.rows]
                tensors[index] = new
        self._places = places
