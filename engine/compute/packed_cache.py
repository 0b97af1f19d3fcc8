# pyright: basic
# Reason: tensor arithmetic on torch's loosely typed operators.
"""Keys and values while sampling: a prompt once however many rows continue it, and a tail of its own for each row.

The queries of all rows of a prompt meet its keys in one matrix product, which reads them once for the group. All tails
advance together: a place of the tail is a moment of the batch, and what lies before a row joined is masked.

Axes: ``B`` rows, ``C`` prompts, ``R`` most rows of one prompt, ``J`` key heads, ``G`` query heads per key head, ``H``
all query heads, ``P`` places of the longest prompt, ``T`` places of the tails, ``E`` head size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from . import kernels
from .attention_layout import Heads, Rotary
from .kernels import LayerCache
from .packed_attention import queries_keys

_GROW = 64


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
    ) -> None:
        self.rows = sum(repeats)
        self._room = room
        self._lengths = list(lengths)
        lengths_C = torch.tensor(self._lengths, device=device)
        counts_C = torch.tensor(list(repeats), device=device)
        self._owner_B = torch.arange(len(self._lengths), device=device).repeat_interleave(counts_C)
        self._length_B = lengths_C[self._owner_B]
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
        self._masks: dict[int | None, Tensor | None] = {}
        self._place_rows()

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
        self._masks.clear()

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
        attend = self._attend_apart if q.device.type == "cpu" else self._attend_together
        return attend(kept, queries, heads).to(qkv.dtype)

    def _attend_together(self, kept: LayerCache, queries: Tensor, heads: Heads) -> Tensor:
        """Attention of queries [B, J, G, E] in one product for all prompts and one for all tails: [B, H E]."""
        prompts = len(self._lengths) * heads.key
        places = kept.prompt_keys.shape[2]
        of_prompt = torch.bmm(self._grouped(queries), kept.prompt_keys.view(prompts, places, -1).transpose(1, 2))
        of_tail = torch.bmm(queries.flatten(0, 1), self._tail(kept.tail_keys).transpose(1, 2))
        shape = (self.rows, heads.key, heads.group)
        scores = torch.cat([self._ungrouped(of_prompt, heads), of_tail.view(*shape, -1)], dim=-1)
        mask_BP = self._mask(heads.window, places, scores)
        if mask_BP is not None:
            scores.add_(mask_BP[:, None, None])
        weights = torch.softmax(scores, dim=-1)
        mixed = torch.bmm(weights[..., places:].flatten(0, 1), self._tail(kept.tail_values)).view(*shape, -1)
        grouped = self._grouped(weights[..., :places])
        mixed += self._ungrouped(torch.bmm(grouped, kept.prompt_values.view(prompts, places, -1)), heads)
        return mixed.view(self.rows, -1)

    def _attend_apart(self, kept: LayerCache, queries: Tensor, heads: Heads) -> Tensor:
        """Attention of queries [B, J, G, E], the rows of each prompt by themselves: [B, H E].

        How many matrices a batched product has, and how wide a softmax is padded, decide how it rounds on a CPU. So
        neither may depend on which other requests are in the batch, which is a matter of the clock.
        """
        mixed = torch.empty_like(queries)
        for prompt, (rows, joined) in enumerate(self._members):
            if not len(rows):
                continue
            length, ahead = self._lengths[prompt], self._written - joined
            # Behind the window: so many places of the prompt, then of the tail.
            behind = 0 if heads.window is None else max(0, length + ahead - heads.window)
            first, moment = min(behind, length), joined + max(0, behind - length)
            own = queries[rows]
            by_key = (heads.key, len(rows), heads.group)
            keys, values = (x[prompt, :, first:length] for x in (kept.prompt_keys, kept.prompt_values))
            tail_keys, tail_values = (
                x[rows, :, moment : self._written].flatten(0, 1) for x in (kept.tail_keys, kept.tail_values)
            )
            of_prompt = torch.bmm(own.transpose(0, 1).flatten(1, 2), keys.transpose(1, 2))
            of_tail = torch.bmm(own.flatten(0, 1), tail_keys.transpose(1, 2))
            scores = (of_prompt.view(*by_key, length - first).transpose(0, 1), of_tail.view(*own.shape[:3], -1))
            weights = torch.softmax(torch.cat(scores, dim=-1), dim=-1)
            before, after = weights.split([length - first, self._written - moment], dim=-1)
            summed = torch.bmm(before.transpose(0, 1).flatten(1, 2), values).view(*by_key, -1).transpose(0, 1)
            mixed[rows] = summed + torch.bmm(after.flatten(0, 1), tail_values).view(own.shape)
        return mixed.view(self.rows, -1)

    def keep(self, rows: Tensor) -> None:
        """Leave only ``rows``, in their order. Only rows whose place changes are copied."""
        place = torch.arange(len(rows), device=rows.device)
        moved = (rows != place).nonzero().squeeze(-1)
        if len(moved):
            for layer in self._layers:
                for tensor in (layer.tail_keys, layer.tail_values):
                    tensor[moved] = tensor[rows[moved]]
        self.rows = len(rows)
        self._owner_B, self._length_B = self._owner_B[rows], self._length_B[rows]
        self._joined_B, self.positions_B = self._joined_B[rows], self.positions_B[rows]
        self.longest = int(self.positions_B.max()) + 1
        self._first = int(self._joined_B.min())
        self._drop_prompts()
        self._place_rows()

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
        self._place_rows()

    def _tail(self, tensor: Tensor) -> Tensor:
        """[B J, t, E] of the places that a row here uses."""
        return tensor[: self.rows].flatten(0, 1)[:, self._first : self._written]

    def _grouped(self, x: Tensor) -> Tensor:
        """[B, J, G, X] -> [C J, R G, X]: the rows of a prompt under one another, with zeros where one has fewer."""
        _, key, group, width = x.shape
        if not self._even:
            padded = x.new_zeros((len(self._lengths) * self._most, key, group, width))
            x = padded.index_copy_(0, self._slot_B, x)
        parted = x.view(len(self._lengths), self._most, key, group, width)
        return parted.transpose(1, 2).reshape(len(self._lengths) * key, self._most * group, width)

    def _ungrouped(self, x: Tensor, heads: Heads) -> Tensor:
        """[C J, R G, X] -> [B, J, G, X]."""
        parted = x.view(len(self._lengths), heads.key, self._most, heads.group, -1).transpose(1, 2)
        return parted.flatten(0, 1) if self._even else parted.flatten(0, 1)[self._slot_B]

    def _place_rows(self) -> None:
        """Where each row stands among those of its prompt."""
        counts_C = torch.bincount(self._owner_B, minlength=len(self._lengths))
        self._most = int(counts_C.max())
        order = torch.argsort(self._owner_B, stable=True)
        rank_B = torch.empty_like(order)
        before_C = counts_C.cumsum(0) - counts_C
        rank_B[order] = torch.arange(self.rows, device=order.device) - before_C[self._owner_B[order]]
        self._slot_B = self._owner_B * self._most + rank_B
        owners, joined = self._owner_B.tolist(), self._joined_B.tolist()
        rows_C: list[list[int]] = [[] for _ in self._lengths]
        for row, owner in enumerate(owners):
            rows_C[owner].append(row)
        # Of each prompt its rows, and when they joined.
        self._members = [(torch.tensor(rows, device=order.device), joined[rows[0]] if rows else 0) for rows in rows_C]
        every = torch.arange(len(self._lengths) * self._most, device=order.device)
        self._even = len(every) == self.rows and bool((self._slot_B == every).all())
        self._masks.clear()

    def _drop_prompts(self) -> None:
        """Forget prompts that no row continues, once they are half of all."""
        alive = torch.unique(self._owner_B)
        if 2 * len(alive) > len(self._lengths):
            return
        self._lengths = [self._lengths[index] for index in alive.tolist()]
        self._owner_B = torch.searchsorted(alive, self._owner_B)
        places = max(self._lengths)
        for layer in self._layers:
            layer.prompt_keys = layer.prompt_keys[alive, :, :places].contiguous()
            layer.prompt_values = layer.prompt_values[alive, :, :places].contiguous()

    def _mask(self, window: int | None, places: int, like: Tensor) -> Tensor | None:
        """Additive mask [B, P + t] of what a row does not see: padding, before it joined, behind its window."""
        if window is not None and window >= self.longest:
            window = None
        if window not in self._masks:
            self._masks[window] = self._new_mask(window, places, like)
        return self._masks[window]

    def _new_mask(self, window: int | None, places: int, like: Tensor) -> Tensor | None:
        aligned = min(self._lengths) == places and bool((self._joined_B == self._first).all())
        if aligned and window is None:
            return None
        place_P = torch.arange(places, device=like.device)
        moment_T = torch.arange(self._first, self._written, device=like.device)
        hidden = torch.cat([place_P >= self._length_B[:, None], moment_T < self._joined_B[:, None]], dim=-1)
        if window is not None:
            of_tail = (self._written - 1 - moment_T).expand(self.rows, -1)
            hidden |= torch.cat([self.positions_B[:, None] - place_P, of_tail], dim=-1) >= window
        return like.new_zeros(hidden.shape).masked_fill_(hidden, float("-inf"))

    def _grow(self) -> None:
        """Room for more tail, without what lies before the first row's."""
        used = self._written - self._first
        size = min(used + max(_GROW, used // 2), used + self._room)
        for layer in self._layers:
            layer.tail_keys = self._moved(layer.tail_keys, size)
            layer.tail_values = self._moved(layer.tail_values, size)
        self._joined_B = self._joined_B - self._first
        self._written, self._first = used, 0
        self._place_rows()

    def _moved(self, old: Tensor, size: int) -> Tensor:
        new = old.new_zeros((self.rows, old.shape[1], size, old.shape[3]))
        new[:, :, : self._written - self._first] = old[: self.rows, :, self._first : self._written]
        return new


def _widened(x: Tensor, places: int) -> Tensor:
    """[.., places', E] with zeros up to ``places``."""
    return F.pad(x, (0, 0, 0, places - x.shape[2]))
