# pyright: basic
# Reason: torch tensors across the interface's numpy seam; tokenizers are untyped.
"""Rows that are sampled together, one token per row and step.

A prompt that several rows share is read once. Rows that finish leave at once, and others may join before any step.
Axes: ``B`` rows, ``D`` hidden size, ``V`` vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..interface import Continuation, SampleAsk, SampleOutput, SampleSettings, StopReason
from .backbone import ActiveLora, Backbone
from .head import LoraHead
from .packing import pack_trees
from .prefix_trees import plan_trees
from .sampling_choice import Cuts, RandomRow, choose, uniforms
from .sampling_prompt import prompt_answers, wants_prompt

# Most tokens of prompts that share what they begin with.
_LONGEST_SHARED = 1 << 13
# For ``plan_trees``: attention a query at a time never looks at pairs of branches, so that sharing costs nothing.
_NO_PAIRS = 1 << 40
# Tokens more than a stop string can be long, so that the decoder does not drop a space at the start of the window.
_MARGIN_TOKENS = 4


@dataclass(frozen=True, slots=True)
class Piece:
    """Some of the samples of one request, each of at most ``limit`` tokens."""

    ask: SampleAsk
    first: int
    count: int
    limit: int

    @property
    def request(self) -> SampleSettings:
        """What was asked."""
        return self.ask.request

    @property
    def places(self) -> int:
        """Places of the cache that it may come to need: the prompt is kept once."""
        return len(self.request.prompt_T) + self.count * self.limit


@dataclass(slots=True)
class _Row:
    """One continuation being written."""

    owner: _Running
    random: RandomRow
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    topk_tokens: list[Any] = field(default_factory=list)
    topk_logprobs: list[Any] = field(default_factory=list)
    stop_reason: StopReason = "length"

    def finish(self, topk: int) -> Continuation:
        """The finished sample, with ``topk`` candidates per token where asked for."""
        return Continuation(
            np.array(self.tokens, dtype=np.int64),
            np.array(self.logprobs, dtype=np.float32),
            self.stop_reason,
            np.array(self.topk_tokens, dtype=np.int64).reshape(-1, topk) if topk else None,
            np.array(self.topk_logprobs, dtype=np.float32).reshape(-1, topk) if topk else None,
        )


@dataclass(eq=False, slots=True)
class _Running:
    """A piece under way: its rows, how many go on, and what was asked about its prompt."""

    piece: Piece
    left: int
    rows: list[_Row] = field(default_factory=list["_Row"])
    answers: SampleOutput = field(default_factory=lambda: SampleOutput([]))


class Batch:
    """Rows on one base model and one adapter.

    Args:
        backbone: The model.
        lora: The adapter, or None.
        tokenizer: For stop strings.
        vocabulary: Number of tokens.
        done: Called with each piece and its result when its last row has stopped.
    """

    def __init__(
        self,
        backbone: Backbone,
        lora: ActiveLora | None,
        tokenizer: Any,
        vocabulary: int,
        done: Callable[[Piece, SampleOutput], None],
    ) -> None:
        self._backbone = backbone
        self._lora = lora
        blocks = backbone.head_blocks(lora)
        # Where rows depend on which others there are, only one request may be in the batch: which meet is a matter of
        # the clock, and no bit of a sample or a score may be.
        self.one_request = blocks is None
        self._head = LoraHead.of(backbone.head, lora, blocks)
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary
        self._done = done
        self._state: Any = None
        self._active: list[_Row] = []
        self._hidden_BD: Tensor | None = None
        self._cuts: Cuts | None = None
        self.places = 0

    @property
    def rows(self) -> int:
        """How many rows are being sampled."""
        return len(self._active)

    def drop_unwanted(self) -> None:
        """Let go of the rows of requests that nobody waits for any more."""
        going = [row.owner.piece.ask.wanted() for row in self._active]
        if all(going) or self._hidden_BD is None:
            return
        dropped = {row.owner for row, on in zip(self._active, going, strict=True) if not on}
        self.places -= sum(running.piece.places for running in dropped)
        hidden_BD = self._leave(going, self._hidden_BD)
        if self._active:
            self._hidden_BD = hidden_BD

    @torch.no_grad()
    def advance(self, joining: Sequence[Piece]) -> bool:
        """Let ``joining`` in, then write one token to every row. False when there is none."""
        short = [piece for piece in joining if piece.limit == 1]
        if short:
            self._write_one(short)
        long = [piece for piece in joining if piece.limit > 1]
        if long:
            self._join(*self._prefill(long))
        if self._hidden_BD is None or self._cuts is None:
            return bool(short)
        tokens_B, going = self._draw(self._hidden_BD, self._active, self._cuts)
        if not all(going):
            tokens_B = self._leave(going, tokens_B)
        if self._active:
            self._hidden_BD = self._backbone.step(self._state, tokens_B, self._lora)
        return True

    def _join(self, state: Any, hidden_BD: Tensor, rows: list[_Row]) -> None:
        if self._hidden_BD is None:
            self._state, self._hidden_BD = state, hidden_BD
        else:
            self._state.join(state)
            self._hidden_BD = torch.cat([self._hidden_BD, hidden_BD])
        self._active = self._active + rows
        self._cuts = self._cuts_of(self._active)

    def _leave(self, going: Sequence[bool], of_rows: Tensor) -> Tensor:
        """Drop the rows that do not go on; returns the others' part of ``of_rows``, whose first axis is B."""
        left = torch.tensor(_closed_up(going), dtype=torch.long)
        self._active = [self._active[place] for place in left.tolist()]
        if not self._active:
            self._state = self._hidden_BD = self._cuts = None
            return of_rows
        self._cuts = self._cuts_of(self._active)
        self._state.keep(left)
        return of_rows[left.to(of_rows.device)]

    def _write_one(self, pieces: Sequence[Piece]) -> None:
        """One token for each: nothing follows it, so that they need no cache.

        Prompts share what they begin with only where sharing changes no bit of a score.
        """
        most = self._backbone.shared_length
        groups = self._by_prompt(pieces)  # short prompts first
        cut = sum(len(members[0].piece.request.prompt_T) <= most for members in groups)
        rows: list[_Row] = []
        last: list[Tensor] = []
        for some, shared in ((groups[:cut], True), (groups[cut:], False)):
            if some:
                hidden_ND, places = self._read(some, shared=shared)
                self._answer(some, hidden_ND, places)
                for members, place in zip(some, places, strict=True):
                    new = [row for running in members for row in running.rows]
                    rows += new
                    last += [hidden_ND[int(place[-1])]] * len(new)
        self._draw(torch.stack(last), rows, self._cuts_of(rows))

    def _read(self, groups: Sequence[list[_Running]], *, shared: bool) -> tuple[Tensor, list[NDArray[np.int64]]]:
        """Hidden states [N, D] of the prompts, and the places of each one's tokens."""
        prompts = [members[0].piece.request.prompt_T for members in groups]
        trees = plan_trees(prompts, _NO_PAIRS, _LONGEST_SHARED if shared else 0)
        packed, places = pack_trees(prompts, trees, self._backbone.device)
        ordered = dict(zip((member for tree in trees for member in tree.members), places, strict=True))
        hidden_ND = self._backbone.hidden(replace(packed, rowwise=True), self._lora)
        return hidden_ND, [ordered[index] for index in range(len(prompts))]

    def _prefill(self, pieces: Sequence[Piece]) -> tuple[Any, Tensor, list[_Row]]:
        """Read each different prompt once; rows come in the order of the prompts."""
        groups = self._by_prompt(pieces)
        device = self._backbone.device
        prompts = [
            torch.from_numpy(members[0].piece.request.prompt_T.astype(np.int64)).to(device) for members in groups
        ]
        rows_of = [[row for running in members for row in running.rows] for members in groups]
        room = max(piece.limit for piece in pieces) - 1
        state, packed_ND, last_BD = self._backbone.prefill(prompts, [len(rows) for rows in rows_of], room, self._lora)
        ends = np.cumsum([len(prompt) for prompt in prompts])
        places = [np.arange(end - len(prompt), end) for prompt, end in zip(prompts, ends.tolist(), strict=True)]
        self._answer(groups, packed_ND, places)
        return state, last_BD, [row for rows in rows_of for row in rows]

    def _by_prompt(self, pieces: Sequence[Piece]) -> list[list[_Running]]:
        """Start the pieces: those with the same prompt together where they may be, short prompts first."""
        groups: dict[bytes | int, list[_Running]] = {}
        for number, piece in enumerate(sorted(pieces, key=lambda piece: len(piece.request.prompt_T))):
            key = number if self._backbone.apart else piece.request.prompt_T.astype(np.int64).tobytes()
            groups.setdefault(key, []).append(self._start(piece))
            self.places += piece.places
        return list(groups.values())

    def _answer(self, groups: Sequence[list[_Running]], hidden_ND: Tensor, places: Sequence[NDArray[np.int64]]) -> None:
        """What the requests ask about the prompts that each group has in common."""
        asked = [
            (running, place)
            for members, place in zip(groups, places, strict=True)
            for running in members
            if wants_prompt(running.piece.request) and running.piece.first == 0
        ]
        answers = prompt_answers([(running.piece.request, place) for running, place in asked], hidden_ND, self._head)
        for (running, _), answer in zip(asked, answers, strict=True):
            running.answers = answer

    def _start(self, piece: Piece) -> _Running:
        request = piece.request
        running = _Running(piece, left=piece.count)
        samples = range(piece.first, piece.first + piece.count)
        running.rows = [_Row(running, RandomRow(request.seed, sample)) for sample in samples]
        return running

    def _cuts_of(self, rows: Sequence[_Row]) -> Cuts:
        asked = [row.owner.piece.request for row in rows]
        return Cuts.of(
            [request.temperature for request in asked],
            [request.top_p for request in asked],
            [request.top_k for request in asked],
            self._vocabulary,
            self._backbone.device,
        )

    def _draw(self, hidden_BD: Tensor, active: Sequence[_Row], cuts: Cuts) -> tuple[Tensor, list[bool]]:
        """One token per row; returns the tokens and which rows go on."""
        logits_BV = self._head.logits(hidden_BD)
        uniform_B = uniforms([row.random for row in active], hidden_BD.device)
        tokens_B, logprobs_B = choose(logits_BV, cuts, uniform_B)
        _record_topk(logits_BV, active)
        # Together, for each copy from an accelerator waits for it; ids of tokens are exact in fp32 up to 2^24.
        tokens, logprobs = torch.stack([tokens_B.to(logprobs_B.dtype), logprobs_B]).tolist()
        going = [
            self._write(row, int(token), logprob) for row, token, logprob in zip(active, tokens, logprobs, strict=True)
        ]
        return tokens_B, going

    def _write(self, row: _Row, token: int, logprob: float) -> bool:
        """Append a token; whether the row goes on."""
        owner = row.owner
        row.tokens.append(token)
        row.logprobs.append(logprob)
        stopped = self._ends(owner.piece.request, row.tokens)
        if not stopped and len(row.tokens) < owner.piece.limit:
            return True
        row.stop_reason = "stop" if stopped else "length"
        owner.left -= 1
        if not owner.left:
            self.places -= owner.piece.places
            done = [each.finish(owner.piece.request.topk_sample_logprobs) for each in owner.rows]
            self._done(owner.piece, replace(owner.answers, continuations=done))
        return False

    def _ends(self, request: SampleSettings, tokens: Sequence[int]) -> bool:
        """Whether the last of ``tokens`` is a stop token, or their text now ends a stop string.

        Every token is at least one byte, so a stop string of n bytes that was completed just now lies within the
        last n tokens.
        """
        if tokens[-1] in request.stop_tokens or not request.stop_strings:
            return tokens[-1] in request.stop_tokens
        longest = max(len(text.encode()) for text in request.stop_strings)
        text = self._tokenizer.decode(list(tokens[-(longest + _MARGIN_TOKENS) :]), skip_special_tokens=False)
        return any(stop in text for stop in request.stop_strings)


def _record_topk(logits_BV: Tensor, active: Sequence[_Row]) -> None:
    widest = max(row.owner.piece.request.topk_sample_logprobs for row in active)
    if not widest:
        return
    best = torch.log_softmax(logits_BV, dim=-1, dtype=torch.float32).topk(widest, dim=-1)
    tokens, values = best.indices.cpu().numpy(), best.values.cpu().numpy()
    for place, row in enumerate(active):
        k = row.owner.piece.request.topk_sample_logprobs
        if k:
            row.topk_tokens.append(tokens[place, :k])
            row.topk_logprobs.append(values[place, :k])


def _closed_up(going: Sequence[bool]) -> list[int]:
    """The rows that go on, those at the end moved into the gaps: the cache then copies few of them."""
    left = [place for place, on in enumerate(going) if on]
    movers = iter(reversed(left))
    return [place if going[place] else next(movers) for place in range(len(left))]
