# pyright: basic
# Reason: tensor arithmetic on torch's loosely typed operators.
"""Keys and values while sampling: a prompt once however many rows continue it, and a tail of its own for each row.

All tails advance together: a place of the tail is a moment of the batch, and what lies before a row joined is masked.
The compiled loops attend row by row. Torch's operations attend to rows of about one length together, padded to shapes
that depend on a row's own length alone and in blocks of fixed sizes (`row_blocks`). Which rows there are, and how long,
is kept on the CPU: no step waits for an accelerator to say it.

Axes: ``B`` rows, ``C`` prompts, ``R`` rows of one block, ``J`` key heads, ``G`` query heads per key head, ``H`` all
query heads, ``P`` places of a prompt, ``T`` places of a tail, ``E`` head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import kernels
from .attention_layout import Heads, Rotary
from .kernels import LayerCache
from .packed_attention import queries_keys
from .row_blocks import EVERY_SIZE, REFERENCE, RowBlocks

_GROW = 64
# Rows are padded to whole multiples of so many places of their prompt, and of their tail.
_PLACES = 64


class _Likes(NamedTuple):
    """Rows of about one length, their prompts, their places of the tail [R, T], and an additive mask [R, P + T]."""

    rows_R: Tensor
    owner_R: Tensor
    moments_RT: Tensor
    mask_RS: Tensor


class Cache:
    """The cache of rows that are sampled together.

    Args:
        layers: How many.
        lengths: Tokens of each prompt.
        repeats: Rows that continue each prompt; rows come in this order.
        room: Most tokens that a row may add.
        heads: Shape of the attention.
        dtype: Of what is kept.
        device: Where it is kept.
        blocks: For attention by torch's operations.
    """

    def __init__(
        self,
        layers: int,
        lengths: Sequence[int],
        repeats: Sequence[int],
        room: int,
        heads: Heads,
        dtype: torch.dtype,
        device: torch.device,
        blocks: RowBlocks = EVERY_SIZE,
    ) -> None:
        self.rows = sum(repeats)
        self._blocks = blocks
        self._room = room
        self._lengths = list(lengths)
        self._owner_B = torch.arange(len(self._lengths)).repeat_interleave(torch.tensor(list(repeats)))
        self._length_B = torch.tensor(self._lengths)[self._owner_B]
        self._joined_B = torch.zeros_like(self._owner_B)
        # The position of the newest token of each row; ``advance`` moves on to the next.
        self.positions_B = self._length_B - 1
        self.longest = max(self._lengths)
        self._written = self._first = 0
        # Zeros, not empty memory: a masked place still enters a product, and 0 * nan would be nan.
        prompt = (len(self._lengths), heads.key, self.longest, heads.size)
        tail = (self.rows, heads.key, 0, heads.size)
        self._layers = [
            LayerCache(*(torch.zeros(shape, dtype=dtype, device=device) for shape in (prompt, prompt, tail, tail)))
            for _ in range(layers)
        ]
        self._likes: dict[int | None, list[_Likes]] = {}

    def fill(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Keep the packed prompts' keys and values [N, J, E]."""
        kept, token = self._layers[layer], 0
        for prompt, length in enumerate(self._lengths):
            kept.prompt_keys[prompt, :, :length] = keys[token : token + length].transpose(0, 1)
            kept.prompt_values[prompt, :, :length] = values[token : token + length].transpose(0, 1)
            token += length

    def advance(self) -> None:
        """Open the next place of every row."""
        self.positions_B = self.positions_B + 1
        self.longest += 1
        if self._written == self._layers[0].tail_keys.shape[2]:
            self._grow()
        self._written += 1
        self._likes.clear()

    def attend(self, layer: int, qkv: Tensor, rotary: Rotary, heads: Heads) -> Tensor:
        """Store this step's keys and values of qkv [B, (H + 2J) E]; return attention over the rows so far [B, H E]."""
        kept = self._layers[layer]
        if heads.compiled:
            rows = kernels.DecodeRows(self._owner_B, self._length_B, self._joined_B, self.positions_B)
            return kernels.decode(qkv, rotary, heads, kept, rows, self._written)
        q, k, v, _ = queries_keys(qkv, rotary, heads)
        kept.tail_keys[: self.rows, :, self._written - 1] = k
        kept.tail_values[: self.rows, :, self._written - 1] = v
        queries = q.to(kept.tail_keys.dtype).mul(heads.scale).view(self.rows, heads.key, heads.group, heads.size)
        mixed = torch.empty_like(queries)
        for likes in self._alike(heads.window):
            mixed[likes.rows_R] = self._blocks.apply(partial(_attend_rows, kept), queries[likes.rows_R], *likes)
        return mixed.view(self.rows, -1).to(qkv.dtype)

    def keep(self, rows: Tensor) -> None:
        """Leave only ``rows``, in their order. Only rows whose place changes are copied."""
        moved = (rows != torch.arange(len(rows))).nonzero().squeeze(-1)
        if len(moved):
            to, source = self._placed(moved), self._placed(rows[moved])
            for layer in self._layers:
                for tensor in (layer.tail_keys, layer.tail_values):
                    tensor[to] = tensor[source]
        self.rows = len(rows)
        self._owner_B, self._length_B = self._owner_B[rows], self._length_B[rows]
        self._joined_B, self.positions_B = self._joined_B[rows], self.positions_B[rows]
        self.longest = int(self.positions_B.max()) + 1
        self._first = int(self._joined_B.min())
        self._drop_prompts()

    def join(self, other: Cache) -> None:
        """Take in the rows of a cache that has no tails yet; they come last."""
        for mine, new in zip(self._layers, other._layers, strict=True):
            places = max(mine.prompt_keys.shape[2], new.prompt_keys.shape[2])
            mine.prompt_keys = torch.cat([_widened(x.prompt_keys, places) for x in (mine, new)])
            mine.prompt_values = torch.cat([_widened(x.prompt_values, places) for x in (mine, new)])
            size = mine.tail_keys.shape[2]
            mine.tail_keys = torch.cat([mine.tail_keys[: self.rows], _widened(new.tail_keys, size)])
            mine.tail_values = torch.cat([mine.tail_values[: self.rows], _widened(new.tail_values, size)])
        self._owner_B = torch.cat([self._owner_B, other._owner_B + len(self._lengths)])
        self._length_B = torch.cat([self._length_B, other._length_B])
        self._joined_B = torch.cat([self._joined_B, torch.full_like(other._joined_B, self._written)])
        self.positions_B = torch.cat([self.positions_B, other.positions_B])
        self._lengths += other._lengths
        self.rows += other.rows
        self.longest = max(self.longest, other.longest)
        self._room = max(self._room, other._room)

    def _alike(self, window: int | None) -> list[_Likes]:
        """The rows by the lengths of their prompts and tails."""
        if window is not None and window >= self.longest:
            window = None
        if window not in self._likes:
            groups: dict[tuple[int, int], list[int]] = {}
            for row, (length, joined) in enumerate(zip(self._length_B.tolist(), self._joined_B.tolist(), strict=True)):
                groups.setdefault((_rounded(length), _rounded(self._written - joined)), []).append(row)
            self._likes[window] = [self._likes_of(rows, *size, window) for size, rows in groups.items()]
        return self._likes[window]

    def _likes_of(self, rows: Sequence[int], places: int, tail: int, window: int | None) -> _Likes:
        rows_R = torch.tensor(rows)
        of_rows = (x[rows_R] for x in (self._owner_B, self._length_B, self._joined_B, self.positions_B))
        rows_R, owner_R, length_R, joined_R, position_R = map(self._placed, (rows_R, *of_rows))
        place_P = torch.arange(places, device=rows_R.device)
        moments_RT = joined_R[:, None] + torch.arange(tail, device=rows_R.device)
        hidden = torch.cat([place_P >= length_R[:, None], moments_RT >= self._written], dim=-1)
        if window is not None:
            ago_RP = position_R[:, None] - place_P
            hidden |= torch.cat([ago_RP, self._written - 1 - moments_RT], dim=-1) >= window
        mask_RS = self._layers[0].tail_keys.new_zeros(hidden.shape).masked_fill_(hidden, float("-inf"))
        most = self._layers[0].tail_keys.shape[2] - 1
        return _Likes(rows_R, owner_R, moments_RT.clamp_max(most), mask_RS)

    def _placed(self, indices: Tensor) -> Tensor:
        """Indices where the keys and values are."""
        return indices.to(self._layers[0].tail_keys.device)

    def _drop_prompts(self) -> None:
        """Forget prompts that no row continues, once they are half of all."""
        alive = torch.unique(self._owner_B)
        if 2 * len(alive) > len(self._lengths):
            return
        self._lengths = [self._lengths[index] for index in alive.tolist()]
        self._owner_B = torch.searchsorted(alive, self._owner_B)
        places, kept = max(self._lengths), self._placed(alive)
        for layer in self._layers:
            layer.prompt_keys = layer.prompt_keys[kept, :, :places].contiguous()
            layer.prompt_values = layer.prompt_values[kept, :, :places].contiguous()

    def _grow(self) -> None:
        """Room for more tail, without what lies before the first row's."""
        used = self._written - self._first
        size = min(used + max(_GROW, used // 2), used + self._room)
        for layer in self._layers:
            layer.tail_keys = self._moved(layer.tail_keys, size)
            layer.tail_values = self._moved(layer.tail_values, size)
        self._joined_B = self._joined_B - self._first
        self._written, self._first = used, 0

    def _moved(self, old: Tensor, size: int) -> Tensor:
        new = old.new_zeros((self.rows, old.shape[1], size, old.shape[3]))
        new[:, :, : self._written - self._first] = old[: self.rows, :, self._first : self._written]
        return new


def _attend_rows(
    kept: LayerCache, queries: Tensor, rows_R: Tensor, owner_R: Tensor, moments_RT: Tensor, mask_RS: Tensor
) -> Tensor:
    """Attention of queries [R, J, G, E] over what the mask leaves: the same shape."""
    places = mask_RS.shape[1] - moments_RT.shape[1]
    here = rows_R[:, None]
    keys, values = (
        torch.cat([_widened(prompt[owner_R, :, :places], places), tail[here, :, moments_RT].transpose(1, 2)], dim=2)
        for prompt, tail in ((kept.prompt_keys, kept.tail_keys), (kept.prompt_values, kept.tail_values))
    )
    return mix_rows(queries, keys, values, mask_RS)


def mix_rows(queries: Tensor, keys: Tensor, values: Tensor, mask_RS: Tensor) -> Tensor:
    """Of queries [R, J, G, E] over keys and values [R, J, S, E], with an additive mask [R, S]: [R, J, G, E]."""
    scores = torch.bmm(queries.flatten(0, 1), keys.flatten(0, 1).transpose(1, 2)).view(*queries.shape[:3], -1)
    weights = torch.softmax(scores.add_(mask_RS[:, None, None]), dim=-1)
    return torch.bmm(weights.flatten(0, 1), values.flatten(0, 1)).view(queries.shape)


def attention_blocks(heads: Heads, like: Tensor) -> RowBlocks | None:
    """The sizes of blocks in which `mix_rows` gives a row the same wherever it stands: tried, not promised."""
    rng = torch.Generator().manual_seed(0)
    shapes = ((heads.key, heads.group, heads.size), *[(heads.key, 2 * _PLACES, heads.size)] * 2, (2 * _PLACES,))
    given = [torch.randn((REFERENCE, *shape), generator=rng).to(like) for shape in shapes]
    return EVERY_SIZE.agreeing(mix_rows, *given)


def _rounded(length: int) -> int:
    return -(-length // _PLACES) * _PLACES


def _widened(x: Tensor, places: int) -> Tensor:
    """[.., places', E] with zeros up to ``places``."""
    return F.pad(x, (0, 0, 0, places - x.shape[2]))
