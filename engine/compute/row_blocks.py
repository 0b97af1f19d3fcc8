# pyright: basic
# Reason: tensor arithmetic on torch's loosely typed operators.
"""Computing rows so that none depends on which others are computed with it.

How many rows a matrix product has decides in which order it adds up, on CPUs and on accelerators: in fp32 on a CPU of
2,048 columns up to 256 rows come out otherwise than 257 do, of 512 columns 15 otherwise than 16. Elementwise functions
differ too, where a vector of the machine ends. Which requests are sampled together is a matter of the clock, and no bit
of a sample may be. So rows go in blocks of a few fixed sizes, padded with zeros, at which they were found to agree.

A trial cannot prove it, but it is a sharp one: every sum of ``zero_sums`` is zero in exact arithmetic, so that the
results are nothing but rounding, and another order of adding up changes nearly all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# What the others are compared with. Products of fewer rows take other ways through a CPU's BLAS.
REFERENCE = 16
_SIZES = (2, 8, 16, 32, 64, 128, 256)
# Logits are wide: larger blocks of them are no faster, and a trial of them would take long.
MOST_WIDE = 64
# How far from their first places the rows of the trial stand in other blocks.
_SHIFT = 7


@dataclass(frozen=True, slots=True)
class RowBlocks:
    """Sizes of blocks, ascending, at which rows come out the same; with none, all rows go at once."""

    sizes: tuple[int, ...]

    def apply(self, function: Callable[..., Tensor], *operands: Tensor) -> Tensor:
        """``function`` of the operands [N, ...], row by row: a tensor of N rows."""
        rows, parts, start = len(operands[0]), [], 0
        if not self.sizes:
            return function(*operands)
        while start < rows:
            size = self._next(rows - start)
            stop = min(start + size, rows)
            given = [_padded(operand[start:stop], size) for operand in operands]
            parts.append(function(*given)[: stop - start])
            start = stop
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _next(self, left: int) -> int:
        """The next block's size: one that holds all rows left, if that wastes little."""
        for size in self.sizes:
            if size >= left and (size - left < REFERENCE or 4 * size <= 5 * left):
                return size
        return max((size for size in self.sizes if size <= left), default=self.sizes[0])

    def within(self, most: int) -> RowBlocks:
        """Those of at most ``most`` rows."""
        return RowBlocks(tuple(size for size in self.sizes if size <= most))

    def agreeing(self, function: Callable[..., Tensor], *operands: Tensor) -> RowBlocks | None:
        """The sizes at which ``function`` gives each of ``REFERENCE`` rows the same wherever it stands; None if none.

        Args:
            function: Of the operands, row by row.
            operands: Each of shape [REFERENCE, ...].
        """
        alone = function(*operands)
        return self._among(lambda size: _agrees(function, operands, alone, size))

    def _among(self, holds: Callable[[int], bool]) -> RowBlocks | None:
        if REFERENCE not in self.sizes or not holds(REFERENCE):
            return None
        return RowBlocks(tuple(size for size in self.sizes if size == REFERENCE or holds(size)))


EVERY_SIZE = RowBlocks(_SIZES)


def _agrees(function: Callable[..., Tensor], operands: Sequence[Tensor], alone: Tensor, size: int) -> bool:
    chosen = (torch.arange(size, device=alone.device) + _SHIFT) % REFERENCE
    return torch.equal(function(*(operand[chosen] for operand in operands)), alone[chosen])


def _padded(x: Tensor, size: int) -> Tensor:
    return x if len(x) == size else torch.cat([x, x.new_zeros((size - len(x), *x.shape[1:]))])


def zero_sums(rows: int, inner: int, outputs: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """X [rows, inner] and W [outputs, inner], of dtype and device of ``like``, with X W^T zero but for rounding."""
    rng = torch.Generator().manual_seed(0)
    half = inner // 2
    order = torch.randperm(half, generator=rng)
    x, weight = torch.zeros(rows, inner), torch.zeros(outputs, inner)
    left = torch.randn(rows, half, generator=rng).to(like.dtype).float()
    # A few drawn rows over and over: drawing a whole vocabulary's takes longer than all else.
    right = torch.randn(min(outputs, 509), half, generator=rng).to(like.dtype).float()
    right = right.repeat(-(-outputs // len(right)), 1)[:outputs]
    x[:, :half], x[:, half : 2 * half] = left, -left[:, order]
    weight[:, :half], weight[:, half : 2 * half] = right, right[:, order]
    return x.to(like), weight.to(like)
