# pyright: basic
# Reason: takes transformers modules apart, whose attributes are untyped.
"""The forward pass of Llama-like models on packed tokens: no padding, no gradient of frozen weights.

Covers Llama, Mistral, Qwen2, Qwen3, Gemma (first generation) and Phi-3; whatever else there is runs through
``transformers_backbone``. A parity test holds the two together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, cast

import psutil
import torch
from torch import Tensor, nn

from ...core.memory import BATCH_TOKENS, PACKED_FAMILIES, PACKED_SHARE, PLAIN_LENGTH
from . import flex, kernels, packed_attention
from .attention_layout import Bucket, Heads, Rotary, attention_span, make_buckets
from .backbone import ActiveLora, Head, find_sites
from .head import LoraHead
from .packed_attention import Attention
from .packed_cache import Cache, attention_blocks
from .packed_layers import (
    GatedDown,
    Linear,
    Lora,
    NormedLinear,
    Recomputed,
    ResidualLinear,
    can_pack,
    gated,
    layer_blocks,
    lora_forward,
    pack,
    rms_norm,
    rms_norm_backward,
)
from .packing import PackedTokens
from .row_blocks import EVERY_SIZE, RowBlocks

_ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu"}
# Up to this length attention a query at a time costs no more than products of whole sequences.
_ROWWISE_LENGTH = 512
# These keep one table of angles for all lengths; the others change it with the longest sequence seen.
_STATIC_ROPE = frozenset({"default", "linear", "llama3", "yarn"})


@dataclass(frozen=True, slots=True)
class _Layer:
    heads: Heads
    input_norm: Tensor
    qkv: Linear
    output: Linear
    middle_norm: Tensor
    gate_up: Linear
    down: Linear


class _Blocks(NamedTuple):
    """In which blocks of rows layers and logits are computed while sampling."""

    layers: RowBlocks
    head: RowBlocks


def is_supported(model: Any) -> bool:
    """Whether this implementation computes what the module does."""
    config = model.config
    rope = getattr(config, "rope_parameters", None) or {}
    return (
        config.model_type in PACKED_FAMILIES
        and getattr(model, "quantization_method", None) is None
        and getattr(config, "hidden_act", None) in _ACTIVATIONS
        and rope.get("rope_type", "default") in _STATIC_ROPE
        and rope.get("partial_rotary_factor", 1.0) == 1.0
    )


class PackedBackbone:
    """A Llama-like model taken apart into plain matrices. The transformers module is emptied on the way.

    Where ``recomputes`` says so of a training batch's tokens and longest sequence, it keeps what goes into each layer,
    and computes the rest again in the backward pass.
    """

    def __init__(self, model: Any, device: torch.device, *, recomputes: Callable[[int, int], bool]) -> None:
        body = model.model
        self.sites = find_sites(model)
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        self.device = device
        self._recomputes = recomputes
        self._embedding = body.embed_tokens.weight.detach()
        self.dtype = self._embedding.dtype
        scale = getattr(body.embed_tokens, "scalar_embed_scale", 1.0)
        self._embed_scale = float(torch.tensor(scale).to(self.dtype))
        self._rotary = body.rotary_emb
        self._angles: Rotary | None = None
        self._eps = float(model.config.rms_norm_eps)
        self._activation = _ACTIVATIONS[model.config.hidden_act]
        self._final_norm = _norm_weight(body.norm)
        packed = self._can_pack()
        head = model.get_output_embeddings()
        unembedding, bias = head.weight.detach(), getattr(head, "bias", None)
        self.head = Head(
            self.sites[-1].name,
            unembedding,
            None if bias is None else bias.detach(),
            packed=pack(unembedding) if packed else None,
        )
        self._layers = [
            _take_layer(layer, f"model.layers.{index}", model.config, self._embedding, packed=packed)
            for index, layer in enumerate(body.layers)
        ]
        self._heads = self._layers[0].heads
        self.apart = False
        self.shared_length = _ROWWISE_LENGTH if self._heads.compiled else 0
        self._flex = flex.compiled(self._heads, self.dtype, device)
        if device.type == "cpu":
            self.longest_tree = PLAIN_LENGTH  # as long as attention has plain masks
        else:
            self.longest_tree = 0 if self._flex is None else BATCH_TOKENS
        self.description: dict[str, Any] = {
            "implementation": "packed",
            "architecture": type(model).__name__,
            "kernels": self._heads.compiled,
            "attention": "padded" if self._flex is None else "flex",
        }
        # Torch's products over a cache on a CPU are twice as fast in fp32, for a row has few queries.
        plain = device.type == "cpu" and not self._heads.compiled
        self._cache_dtype = torch.float32 if plain else self.dtype
        self._attention_blocks = (
            EVERY_SIZE
            if self._heads.compiled
            else attention_blocks(self._heads, torch.empty(0, dtype=self._cache_dtype, device=device))
        )
        self._blocks: dict[tuple[tuple[str, int], ...], _Blocks | None] = {}
        self._holds = self._holds_together()
        self.description["batch_invariant"] = self.head_blocks(None) is not None

    def _can_pack(self) -> bool:
        """Whether the layers may be kept twice, in the orders that forward and backward products read."""
        small = self.parameters * self.dtype.itemsize <= psutil.virtual_memory().total / PACKED_SHARE
        return small and self.device.type == "cpu" and self.dtype == torch.bfloat16 and can_pack()

    def hidden(self, batch: PackedTokens, lora: ActiveLora | None) -> Tensor:
        """Final hidden states [N, D]."""
        rotary = self._angles_at(batch.positions_N, max(batch.lengths))
        if batch.rowwise:
            shared = self.shared_length > 0 and int(batch.positions_N.max()) < self.shared_length
            return self._read(batch, rotary, lora, shared=shared)
        x = self._embed(batch.tokens_N)
        buckets = self._buckets(batch)
        again = torch.is_grad_enabled() and self._recomputes(len(x), max(batch.lengths))
        for layer in self._layers:
            run = partial(self._layer, layer=layer, rotary=rotary, buckets=buckets, lora=lora)
            if again:
                linears = (layer.qkv, layer.output, layer.gate_up, layer.down)
                pairs = [tensor for linear in linears for tensor in Lora.of(linear, lora).tensors()]
                x = Recomputed.apply(x, run, *pairs)
            else:
                x = run(x)
        return cast("Tensor", _FinalNorm.apply(x, self._final_norm, self._eps))

    def _layer(
        self, x: Tensor, layer: _Layer, rotary: Rotary, buckets: Sequence[Bucket], lora: ActiveLora | None
    ) -> Tensor:
        """One layer on packed rows [N, D], differentiable."""
        qkv_lora, out_lora = Lora.of(layer.qkv, lora), Lora.of(layer.output, lora)
        gate_lora, down_lora = Lora.of(layer.gate_up, lora), Lora.of(layer.down, lora)
        qkv = NormedLinear.apply(x, layer.input_norm, self._eps, layer.qkv, qkv_lora, *qkv_lora.tensors())
        mixed = Attention.apply(qkv, rotary, layer.heads, buckets)
        x = ResidualLinear.apply(mixed, x, layer.output, out_lora, *out_lora.tensors())
        wide = NormedLinear.apply(x, layer.middle_norm, self._eps, layer.gate_up, gate_lora, *gate_lora.tensors())
        return GatedDown.apply(wide, x, self._activation, layer.down, down_lora, *down_lora.tensors())

    def _buckets(self, batch: PackedTokens) -> list[Bucket]:
        """What attention goes through in turn, while training."""
        if self._flex is None:
            return make_buckets(batch.lengths, self.device, batch.positions_N, batch.branches_N)
        return [flex.flex_bucket(batch, {layer.heads.window for layer in self._layers}, self._flex)]

    @torch.no_grad()
    def _read(self, batch: PackedTokens, rotary: Rotary, lora: ActiveLora | None, *, shared: bool) -> Tensor:
        """``hidden``, where each sequence gets the same whatever it is packed with, or shares if ``shared``."""
        if shared:
            windows = {layer.heads.window for layer in self._layers}
            spans = {window: attention_span(batch, window) for window in windows}
            return self._forward(
                self._embed(batch.tokens_N),
                lora,
                lambda _, qkv, heads: packed_attention.attention_by_rows(qkv, rotary, heads, spans[heads.window]),
            )
        buckets = make_buckets(batch.lengths, self.device, apart=True)
        return self._forward(
            self._embed(batch.tokens_N),
            lora,
            lambda _, qkv, heads: packed_attention.attention(packed_attention.split(qkv, rotary, heads), buckets),
        )

    @torch.no_grad()
    def prefill(
        self, prompts: Sequence[Tensor], repeats: Sequence[int], room: int, lora: ActiveLora | None
    ) -> tuple[Cache, Tensor, Tensor]:
        """Read prompts packed; see ``Backbone.prefill``."""
        lengths = [len(prompt) for prompt in prompts]
        positions = torch.cat([torch.arange(length, device=self.device) for length in lengths])
        rotary = self._angles_at(positions, max(lengths))
        buckets = make_buckets(lengths, self.device, apart=True)
        blocks = self._attention_blocks or EVERY_SIZE
        cache = Cache(len(self._layers), lengths, repeats, room, self._heads, self._cache_dtype, self.device, blocks)

        def attend(index: int, qkv: Tensor, heads: Heads) -> Tensor:
            parts = packed_attention.split(qkv, rotary, heads)
            cache.fill(index, *parts.keys_values())
            return packed_attention.attention(parts, buckets)

        hidden_ND = self._forward(self._embed(torch.cat(list(prompts))), lora, attend)
        ends = torch.tensor(lengths, device=self.device).cumsum(0) - 1
        return (
            cache,
            hidden_ND,
            hidden_ND[ends].repeat_interleave(torch.tensor(repeats, device=self.device), 0, output_size=sum(repeats)),
        )

    @torch.no_grad()
    def step(self, state: Cache, tokens_B: Tensor, lora: ActiveLora | None) -> Tensor:
        """Append one token per row; see ``Backbone.step``."""
        state.advance()
        rotary = self._angles_at(state.positions_B.to(self.device), state.longest)
        return self._forward(
            self._embed(tokens_B), lora, lambda index, qkv, heads: state.attend(index, qkv, rotary, heads)
        )

    def _forward(self, x: Tensor, lora: ActiveLora | None, attend: Callable[[int, Tensor, Heads], Tensor]) -> Tensor:
        """The layers on rows [N, D] that see one another in ``attend`` alone; all else goes in blocks of rows."""
        found = self._blocks_for(lora)
        blocks = RowBlocks(()) if found is None else found.layers
        for index, layer in enumerate(self._layers):
            qkv = blocks.apply(partial(self._projections, layer=layer, lora=lora), x)
            mixed = attend(index, qkv, layer.heads)
            x = blocks.apply(partial(self._rest, layer=layer, lora=lora), mixed, x)
        return rms_norm(x, self._final_norm, self._eps)[0]

    def head_blocks(self, lora: ActiveLora | None) -> RowBlocks | None:
        """See ``Backbone.head_blocks``."""
        found = self._blocks_for(lora)
        return found.head if found is not None and self._holds else None

    def _blocks_for(self, lora: ActiveLora | None) -> _Blocks | None:
        """The blocks at which layers and head with pairs of these ranks hold: tried once for each."""
        first = self._layers[0]
        kinds = (first.qkv, first.output, first.gate_up, first.down)
        names = [*(name for linear in kinds for name in linear.names), self.head.name]
        ranks = () if lora is None else tuple((name, len(lora.pairs[name].a)) for name in names if name in lora.pairs)
        if ranks not in self._blocks:
            layers: RowBlocks | None = EVERY_SIZE
            for linear in kinds:
                layers = layers and layer_blocks(linear, lora, layers)
            head = layers and LoraHead.of(self.head, lora).agreeing(layers)
            self._blocks[ranks] = None if layers is None or head is None else _Blocks(layers, head)
        return self._blocks[ranks]

    def _holds_together(self) -> bool:
        """Whether prompts that are read and continued together get what each gets alone: the first layer is tried."""
        if self._attention_blocks is None:
            return False
        one = copy(self)
        one._layers = self._layers[:1]
        rng = torch.Generator().manual_seed(0)
        lengths = (5, 40, 70)
        every = range(len(lengths))
        prompts = [torch.randint(len(self._embedding), (n,), generator=rng).to(self.device) for n in lengths]
        following = torch.randint(len(self._embedding), (2, len(lengths)), generator=rng).to(self.device)

        def states(chosen: Sequence[int]) -> Tensor:
            own = [prompts[place] for place in chosen]
            cache, read, _ = one.prefill(own, [1] * len(own), 2, None)
            stepped = [one.step(cache, tokens_B[list(chosen)], None) for tokens_B in following]
            positions = torch.cat([torch.arange(len(prompt), device=self.device) for prompt in own])
            packed = PackedTokens(torch.cat(own), positions, tuple(map(len, own)), rowwise=True)
            scored = one.hidden(packed, None)
            each = [(*torch.split(state, list(packed.lengths)),) for state in (read, scored)]
            each += [tuple(state.unsqueeze(1)) for state in stepped]
            return torch.cat([part for own_parts in zip(*each, strict=True) for part in own_parts])

        return torch.equal(states(every), torch.cat([states([place]) for place in every]))

    def _projections(self, x: Tensor, layer: _Layer, lora: ActiveLora | None) -> Tensor:
        normed = rms_norm(x, layer.input_norm, self._eps)[0]
        return lora_forward(normed, layer.qkv, Lora.of(layer.qkv, lora))[0]

    def _rest(self, mixed: Tensor, x: Tensor, layer: _Layer, lora: ActiveLora | None) -> Tensor:
        x = lora_forward(mixed, layer.output, Lora.of(layer.output, lora), x)[0]
        normed = rms_norm(x, layer.middle_norm, self._eps)[0]
        wide = lora_forward(normed, layer.gate_up, Lora.of(layer.gate_up, lora))[0]
        return lora_forward(gated(wide, self._activation), layer.down, Lora.of(layer.down, lora), x)[0]

    def _embed(self, tokens: Tensor) -> Tensor:
        x = nn.functional.embedding(tokens, self._embedding)
        return x if self._embed_scale == 1.0 else x * self._embed_scale

    def _angles_at(self, positions: Tensor, longest: int) -> Rotary:
        """Angles [N, 1, E] of ``positions``, out of a table that doubles when it is outgrown."""
        if self._angles is None or len(self._angles.cos) < longest + 1:
            every = torch.arange(max(256, 2 * (longest + 1)), device=self.device)
            cos, sin = self._rotary(self._embedding[:1], every.unsqueeze(0))
            self._angles = Rotary(cos[0].unsqueeze(1).contiguous(), sin[0].unsqueeze(1).contiguous())
        return Rotary(self._angles.cos[positions], self._angles.sin[positions])


class _FinalNorm(torch.autograd.Function):
    """The norm before the unembedding."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Returns [N, D]."""
        y, root = rms_norm(x, weight, eps)
        ctx.save_for_backward(x, root, weight)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        """Gradient w.r.t. x."""
        x, root, weight = ctx.saved_tensors
        return rms_norm_backward(grad, x, root, weight), None, None


def _take_layer(layer: Any, name: str, config: Any, embedding: Tensor, *, packed: bool) -> _Layer:
    """Move one decoder layer's weights into stacked matrices, freeing the originals."""
    attention, mlp = layer.self_attn, layer.mlp
    if hasattr(attention, "qkv_proj"):
        qkv = _stack(attention, f"{name}.self_attn", ("qkv_proj",), packed)
        gate_up = _stack(mlp, f"{name}.mlp", ("gate_up_proj",), packed)
    else:
        qkv = _stack(attention, f"{name}.self_attn", ("q_proj", "k_proj", "v_proj"), packed)
        gate_up = _stack(mlp, f"{name}.mlp", ("gate_proj", "up_proj"), packed)
    return _Layer(
        heads=_heads_of(attention, config, embedding),
        input_norm=_norm_weight(layer.input_layernorm),
        qkv=qkv,
        output=_stack(attention, f"{name}.self_attn", ("o_proj",), packed),
        middle_norm=_norm_weight(layer.post_attention_layernorm),
        gate_up=gate_up,
        down=_stack(mlp, f"{name}.mlp", ("down_proj",), packed),
    )


def _heads_of(attention: Any, config: Any, embedding: Tensor) -> Heads:
    """The shape of a layer's attention, and whether the compiled kernels take it."""
    query, key, size = int(config.num_attention_heads), int(config.num_key_value_heads), int(attention.head_dim)
    return Heads(
        query=query,
        key=key,
        size=size,
        scale=float(attention.scaling),
        window=_window(attention, config),
        norm=_head_norms(attention, config) if hasattr(attention, "q_norm") else None,
        eps=float(config.rms_norm_eps),
        compiled=kernels.usable(embedding) and kernels.fits(size, query // key),
    )


def _stack(parent: Any, name: str, parts: Sequence[str], packed: bool) -> Linear:
    modules = [getattr(parent, part) for part in parts]
    weight = modules[0].weight.detach() if len(modules) == 1 else torch.cat([m.weight.detach() for m in modules])
    bias = None
    if modules[0].bias is not None:
        bias = torch.cat([module.bias.detach() for module in modules])
    widths = tuple(int(module.weight.shape[0]) for module in modules)
    for module in modules:
        module.weight = None
    names = tuple(f"{name}.{part}" for part in parts)
    d_in = int(weight.shape[1])
    if not packed:
        return Linear(weight, bias, names, widths, None, d_in)
    return Linear(None, bias, names, widths, (pack(weight), pack(weight.t())), d_in)


def _norm_weight(norm: Any) -> Tensor:
    """The factor a norm multiplies by. Gemma's norms store it less one."""
    weight = norm.weight.detach()
    return (1.0 + weight.float()).to(weight.dtype) if type(norm).__name__.startswith("Gemma") else weight


def _head_norms(attention: Any, config: Any) -> Tensor:
    """[H + J, E]: the factor of each query head, then of each key head."""
    query, key = _norm_weight(attention.q_norm), _norm_weight(attention.k_norm)
    return torch.cat([query.expand(config.num_attention_heads, -1), key.expand(config.num_key_value_heads, -1)])


def _window(attention: Any, config: Any) -> int | None:
    """How many positions back a query sees, itself included; None is all."""
    if hasattr(attention, "sliding_window"):
        return attention.sliding_window
    return getattr(config, "sliding_window", None) if config.model_type in {"mistral", "phi3"} else None
