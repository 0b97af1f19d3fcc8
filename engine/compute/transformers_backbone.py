"""The forward pass of any causal LM, by its own transformers module, with LoRA added at its matrices.

Slower than `packed` but right for every architecture: training batches are right-padded (a causal model's real
positions cannot see padding behind them). What transformers computes may depend on the shape of the batch, so that each
request is sampled in passes of its own, and nothing is padded. LoRA on the stacked experts of mixture-of-experts layers
adds each expert's pair to what that expert computes.
"""
# pyright: basic
# Reason: drives transformers modules, whose attributes and outputs are untyped.

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ...core.errors import ModelError
from .backbone import ActiveLora, Head, LoraPair, Site, find_sites
from .head import LoraHead
from .packing import PackedTokens
from .row_blocks import EVERY_SIZE, RowBlocks

_PADDED_TOKENS = 1.25
# Looks up the active pair of a site, with its scaling; None where there is none.
FindPair = Callable[[str], tuple[LoraPair, float] | None]


@dataclass(slots=True)
class _Group:
    """Rows of one request: their places in the whole batch, and transformers' own cache."""

    rows: list[int]
    cache: Any
    length: int
    device: torch.device


@dataclass(slots=True)
class GroupedCache:
    """Rows being sampled, in groups that a request makes."""

    groups: list[_Group]

    def keep(self, rows: Tensor) -> None:
        """See ``KeyValueCache.keep``."""
        new_place = {old: new for new, old in enumerate(rows.tolist())}
        kept: list[_Group] = []
        for group in self.groups:
            local = [place for place, row in enumerate(group.rows) if row in new_place]
            if local:
                group.cache.batch_select_indices(torch.tensor(local, device=group.device))
                left = [new_place[group.rows[place]] for place in local]
                kept.append(replace(group, rows=left))
        self.groups = kept

    def join(self, other: GroupedCache) -> None:
        """See ``KeyValueCache.join``."""
        before = sum(len(group.rows) for group in self.groups)
        self.groups += [replace(new, rows=[before + row for row in new.rows]) for new in other.groups]


class TransformersBackbone:
    """Any transformers causal LM. LoRA reaches its matrices through their ``forward``, replaced once at loading."""

    def __init__(self, model: Any, device: torch.device, *, checkpointing: bool = False) -> None:
        self._body = model.base_model
        self._lora: ActiveLora | None = None
        self.sites = find_sites(model)
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        self.longest_tree = 0  # transformers' own attention masks are left alone
        self.apart, self.shared_length = True, 0
        self.description: dict[str, Any] = {"implementation": "transformers", "architecture": type(model).__name__}
        self.device = device
        self.dtype = model.get_input_embeddings().weight.dtype
        self.head = _head_of(model, self.sites[-1].name)
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            model.train()
        _verify_head(self, model)
        _install(model, self.sites[:-1], self._pair)
        self._head_blocks: dict[int, RowBlocks | None] = {}
        self.description["batch_invariant"] = self.head_blocks(None) is not None

    def head_blocks(self, lora: ActiveLora | None) -> RowBlocks | None:
        """See ``Backbone.head_blocks``; tried once for each rank of the unembedding's pair."""
        head = LoraHead.of(self.head, lora)
        rank = 0 if head.pair is None else len(head.pair.a)
        if rank not in self._head_blocks:
            self._head_blocks[rank] = head.agreeing(EVERY_SIZE)
        return self._head_blocks[rank]

    def _pair(self, name: str) -> tuple[LoraPair, float] | None:
        if self._lora is None or name not in self._lora.pairs:
            return None
        return self._lora.pairs[name], self._lora.scaling

    @contextmanager
    def _with(self, lora: ActiveLora | None) -> Iterator[None]:
        self._lora = lora
        try:
            yield
        finally:
            self._lora = None

    def hidden(self, batch: PackedTokens, lora: ActiveLora | None) -> Tensor:
        """Final hidden states [N, D]."""
        sequences = torch.split(batch.tokens_N, list(batch.lengths))
        parts: list[Tensor] = []
        alone = ((place, place + 1) for place in range(len(sequences)))
        with self._with(lora), torch.set_grad_enabled(torch.is_grad_enabled() and not batch.rowwise):
            for first, last in alone if batch.rowwise else _similar_lengths(batch.lengths):
                parts += self._padded(sequences[first:last])
        return torch.cat(parts)

    def _padded(self, sequences: Sequence[Tensor]) -> list[Tensor]:
        lengths = [len(sequence) for sequence in sequences]
        tokens_BT = pad_sequence(list(sequences), batch_first=True)
        mask_BT = (
            torch.arange(tokens_BT.shape[1], device=self.device) < torch.tensor(lengths, device=self.device)[:, None]
        )
        full = min(lengths) == max(lengths)
        output = self._body(input_ids=tokens_BT, attention_mask=None if full else mask_BT.long(), use_cache=False)
        hidden_BTD = output.last_hidden_state
        return [hidden_BTD[row, :length] for row, length in enumerate(lengths)]

    @torch.no_grad()
    def prefill(
        self, prompts: Sequence[Tensor], repeats: Sequence[int], room: int, lora: ActiveLora | None
    ) -> tuple[GroupedCache, Tensor, Tensor]:
        """Read prompts, each by itself; see ``Backbone.prefill``."""
        read: list[Tensor] = []
        groups: list[_Group] = []
        with self._with(lora):
            for prompt, count in zip(prompts, repeats, strict=True):
                output = self._body(input_ids=prompt.unsqueeze(0), use_cache=True)
                cache = output.past_key_values
                cache.batch_select_indices(torch.zeros(count, dtype=torch.long, device=self.device))
                first = sum(len(group.rows) for group in groups)
                groups.append(_Group(list(range(first, first + count)), cache, len(prompt), self.device))
                read.append(output.last_hidden_state[0])
        last_BD = torch.cat([state[-1:].expand(count, -1) for state, count in zip(read, repeats, strict=True)])
        return GroupedCache(groups), torch.cat(read), last_BD

    @torch.no_grad()
    def step(self, state: GroupedCache, tokens_B: Tensor, lora: ActiveLora | None) -> Tensor:
        """Append one token per row; see ``Backbone.step``."""
        hidden_BD = tokens_B.new_empty((len(tokens_B), self.head.weight_VD.shape[1]), dtype=self.dtype)
        with self._with(lora):
            for group in state.groups:
                positions = torch.full((len(group.rows), 1), group.length, device=self.device)
                output = self._body(
                    input_ids=tokens_B[group.rows].unsqueeze(1),
                    position_ids=positions,
                    past_key_values=group.cache,
                    use_cache=True,
                )
                group.cache = output.past_key_values
                group.length += 1
                hidden_BD[group.rows] = output.last_hidden_state[:, -1]
        return hidden_BD


def _similar_lengths(lengths: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Runs of neighbours (sorted by length already) that padding would not blow up by more than a quarter."""
    start = 0
    for stop in range(1, len(lengths) + 1):
        run = lengths[start : stop + 1]
        if stop == len(lengths) or max(run) * len(run) > _PADDED_TOKENS * sum(run):
            yield start, stop
            start = stop


def _install(model: nn.Module, sites: Sequence[Site], pair: FindPair) -> None:
    """Replace the forward of every adapted module by one that adds the active pair."""
    experts: dict[str, list[Site]] = {}
    for site in sites:
        if site.experts:
            experts.setdefault(site.name.rsplit(".", 1)[0], []).append(site)
        else:
            _wrap_linear(model.get_submodule(site.name), site.name, pair)
    for name, members in experts.items():
        module = model.get_submodule(name)
        module.forward = _expert_forward(module, members, pair)


def _wrap_linear(module: nn.Module, name: str, pair: FindPair) -> None:
    base = module.forward

    def forward(x: Tensor) -> Tensor:
        active = pair(name)
        if active is None:
            return base(x)
        (a, b), scaling = active
        return base(x) + scaling * F.linear(F.linear(x.to(a.dtype), a), b)

    module.forward = forward


def _head_of(model: Any, name: str) -> Head:
    module = model.get_output_embeddings()
    config = model.config.get_text_config()
    scale = 1.0
    if getattr(config, "logit_scale", None):
        scale = float(config.logit_scale)
    elif getattr(config, "logits_scaling", None):
        scale = 1.0 / float(config.logits_scaling)
    softcap = getattr(config, "final_logit_softcapping", None)
    bias = getattr(module, "bias", None)
    return Head(name, module.weight.detach(), None if bias is None else bias.detach(), scale, softcap)


@torch.no_grad()
def _verify_head(backbone: TransformersBackbone, model: Any) -> None:
    """Compare our reading of the unembedding with the model's own logits on a few tokens.

    Raises:
        ModelError: If the model does something to its logits that we do not know of.
    """
    tokens = torch.arange(4, device=backbone.device).remainder(backbone.head.weight_VD.shape[0]).unsqueeze(0)
    expected = model(input_ids=tokens, use_cache=False).logits.float()
    ours = LoraHead(backbone.head).logits(model.base_model(input_ids=tokens, use_cache=False).last_hidden_state[0])
    tolerance = 1e-3 if backbone.dtype == torch.float32 else 0.1
    if not torch.allclose(ours.float(), expected[0], atol=tolerance, rtol=tolerance):
        raise ModelError(
            f"{type(model).__name__} changes its logits after the unembedding in a way this engine does not know",
            fix="Use another architecture, and report this one",
        )


def _expert_forward(module: nn.Module, sites: Sequence[Site], pair: FindPair) -> Callable[..., Tensor]:
    """A replacement for ``module.forward`` that adds each expert's pair.

    The usual layout (``gate_up_proj`` and ``down_proj``, no biases) runs expert by expert and adds the low-rank
    product to the activations. Any other layout keeps its own forward and gets whole adapted parameters.
    """
    if _is_gated_layout(module):
        return _gated_forward(module, sites[0].name.rsplit(".", 1)[0], pair)
    return _materialised_forward(module, sites, pair)


def _is_gated_layout(module: nn.Module) -> bool:
    names = {name for name, _ in module.named_parameters(recurse=False)}
    plain_gate = not hasattr(module, "_apply_gate") or module._apply_gate.__qualname__.startswith("_default")  # type: ignore[union-attr]
    return names == {"gate_up_proj", "down_proj"} and not getattr(module, "is_transposed", False) and plain_gate


def _gated_forward(module: nn.Module, prefix: str, pair: FindPair) -> Callable[..., Tensor]:
    def forward(hidden_ND: Tensor, experts_NK: Tensor, weights_NK: Tensor) -> Tensor:
        gate_up = pair(f"{prefix}.gate_up_proj")
        down = pair(f"{prefix}.down_proj")
        result_ND = torch.zeros_like(hidden_ND)
        flat = experts_NK.reshape(-1)
        order = torch.argsort(flat, stable=True)
        counts = torch.bincount(flat, minlength=module.gate_up_proj.shape[0]).tolist()  # type: ignore[union-attr]
        start = 0
        for expert, count in enumerate(counts):
            if not count:
                continue
            slots = order[start : start + count]
            start += count
            tokens = slots // experts_NK.shape[1]
            wide = _expert_linear(hidden_ND[tokens], cast("Tensor", module.gate_up_proj), expert, gate_up)
            gate, up = wide.chunk(2, dim=-1)
            out = _expert_linear(module.act_fn(gate) * up, module.down_proj, expert, down)  # type: ignore[operator]
            weighted = out * weights_NK.reshape(-1)[slots].unsqueeze(-1)
            result_ND = result_ND.index_add(0, tokens, weighted.to(result_ND.dtype))
        return result_ND

    return forward


def _expert_linear(x: Tensor, weight: Tensor, expert: int, active: tuple[LoraPair, float] | None) -> Tensor:
    base = F.linear(x, weight[expert])
    if active is None:
        return base
    (a, b), scaling = active
    return base + scaling * F.linear(F.linear(x.to(a.dtype), a[expert]), b[expert])


def _materialised_forward(module: nn.Module, sites: Sequence[Site], pair: FindPair) -> Callable[..., Tensor]:
    base = module.forward

    def forward(*args: Tensor, **kwargs: Tensor) -> Tensor:
        own = module._parameters
        originals = dict(own)
        try:
            for site in sites:
                active = pair(site.name)
                if active is None:
                    continue
                (a, b), scaling = active
                delta = scaling * torch.bmm(b, a)
                key = site.name.rsplit(".", 1)[1]
                own[key] = originals[key] + (delta.transpose(1, 2) if site.transposed else delta)  # type: ignore[assignment]
            return base(*args, **kwargs)
        finally:
            own.update(originals)

    return forward
