# pyright: basic
# Reason: takes transformers modules apart, whose attributes are untyped.
"""The forward pass of Llama-like models on packed tokens: no padding, no gradient of frozen weights.

Covers Llama, Mistral, Qwen2, Qwen3, Gemma (first generation) and Phi-3; whatever else there is runs through
``model_transformers``. A parity test holds the two together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from . import packed_attention
from .backbone import ActiveLora, Head, Site, find_sites
from .packed_attention import PLAIN_LENGTH, Attention, Heads, attend, make_buckets, queries_keys
from .packed_cache import Cache
from .packed_layers import (
    GatedDown,
    Linear,
    Lora,
    NormedLinear,
    ResidualLinear,
    can_pack,
    gated,
    lora_forward,
    pack,
    rms_norm,
    rows_alone,
)
from .packing import PackedTokens

ARCHITECTURES = frozenset(
    {
        "LlamaForCausalLM",
        "MistralForCausalLM",
        "Qwen2ForCausalLM",
        "Qwen3ForCausalLM",
        "GemmaForCausalLM",
        "Phi3ForCausalLM",
    }
)
_ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu"}
# These keep one table of angles for all lengths; the others change it with the longest sequence seen.
_ROWWISE_LENGTH = 512
# Models of up to this share of the machine's memory keep their layers in two orders.
_PACKED_SHARE = 16
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


def is_supported(model: Any) -> bool:
    """Whether this implementation computes what the module does."""
    config = model.config
    rope = getattr(config, "rope_parameters", None) or {}
    return (
        type(model).__name__ in ARCHITECTURES
        and getattr(model, "quantization_method", None) is None
        and getattr(config, "hidden_act", None) in _ACTIVATIONS
        and rope.get("rope_type", "default") in _STATIC_ROPE
        and rope.get("partial_rotary_factor", 1.0) == 1.0
    )


class PackedBackbone:
    """A Llama-like model taken apart into plain matrices. The transformers module is emptied on the way."""

    def __init__(self, model: Any, device: torch.device) -> None:
        body = model.model
        self._architecture = type(model).__name__
        self._sites = find_sites(model)
        self._parameters = sum(parameter.numel() for parameter in model.parameters())
        self._embedding = body.embed_tokens.weight.detach()
        scale = getattr(body.embed_tokens, "scalar_embed_scale", 1.0)
        self.device = device
        self.dtype = self._embedding.dtype
        self._embed_scale = float(torch.tensor(scale).to(self.dtype))
        self._rotary = body.rotary_emb
        self._angles: tuple[Tensor, Tensor] | None = None
        self._eps = float(model.config.rms_norm_eps)
        self._activation = _ACTIVATIONS[model.config.hidden_act]
        self._final_norm = _norm_weight(body.norm)
        head = model.get_output_embeddings()
        bias = getattr(head, "bias", None)
        packed = self._can_pack()
        unembedding = head.weight.detach()
        self.head = Head(
            self._sites[-1].name,
            unembedding,
            None if bias is None else bias.detach(),
            packed=pack(unembedding) if packed else None,
        )
        self._layers = [
            _take_layer(layer, f"model.layers.{index}", model.config, packed=packed)
            for index, layer in enumerate(body.layers)
        ]
        fused = packed_attention.usable(self._embedding, self._layers[0].heads)
        first = self._layers[0]
        every_kind = (first.qkv, first.output, first.gate_up, first.down)
        self._rows_alone = packed and fused and all(rows_alone(linear) for linear in every_kind)
        # The layers in a second order, and the head, which stays as it is too: it may be the embedding.
        self._packed = self._parameters * self.dtype.itemsize if packed else 0

    def _can_pack(self) -> bool:
        """Whether the layers may be kept twice, in the orders that forward and backward products read."""
        small = self._parameters * self.dtype.itemsize <= psutil.virtual_memory().total / _PACKED_SHARE
        return small and self.device.type == "cpu" and self.dtype == torch.bfloat16 and can_pack()

    @property
    def longest_tree(self) -> int:
        """As long as attention has plain masks."""
        return PLAIN_LENGTH if self.device.type == "cpu" else 0

    @property
    def rowwise_length(self) -> int:
        """As long as attention a query at a time costs no more than products of whole sequences."""
        return _ROWWISE_LENGTH if self._rows_alone else 0

    def sites(self) -> list[Site]:
        """Every matrix that can be adapted."""
        return self._sites

    def hidden(self, batch: PackedTokens, lora: ActiveLora | None) -> Tensor:
        """Final hidden states [N, D]."""
        x = self._embed(batch.tokens_N)
        cos, sin = self._cos_sin(batch.positions_N, int(batch.positions_N.max()) + 1)
        sights: dict[int | None, Any] = {}
        if batch.rowwise:
            windows = {layer.heads.window for layer in self._layers}
            sights = {window: packed_attention.make_sight(batch, window) for window in windows}
        buckets = make_buckets(batch.lengths, self.device, batch.positions_N, batch.branches_N)
        for layer in self._layers:
            qkv_lora = Lora.of(layer.qkv, lora)
            qkv = NormedLinear.apply(x, layer.input_norm, self._eps, layer.qkv, qkv_lora, *qkv_lora.tensors())
            if batch.rowwise:
                sight = sights[layer.heads.window]
                mixed = packed_attention.attention_by_rows(qkv, cos, sin, layer.heads, sight)
            else:
                mixed = Attention.apply(qkv, cos, sin, layer.heads, buckets)
            out_lora = Lora.of(layer.output, lora)
            x = ResidualLinear.apply(mixed, x, layer.output, out_lora, *out_lora.tensors())
            gate_lora, down_lora = Lora.of(layer.gate_up, lora), Lora.of(layer.down, lora)
            wide = NormedLinear.apply(x, layer.middle_norm, self._eps, layer.gate_up, gate_lora, *gate_lora.tensors())
            x = GatedDown.apply(wide, x, self._activation, layer.down, down_lora, *down_lora.tensors())
        return _FinalNorm.apply(x, self._final_norm, self._eps)  # type: ignore[return-value]

    @torch.no_grad()
    def prefill(
        self, prompts: Sequence[Tensor], repeats: Sequence[int], room: int, lora: ActiveLora | None
    ) -> tuple[Cache, Tensor, Tensor]:
        """Read prompts packed; see ``Backbone.prefill``."""
        lengths = [len(prompt) for prompt in prompts]
        positions = torch.cat([torch.arange(length, device=self.device) for length in lengths])
        cos, sin = self._cos_sin(positions, max(lengths))
        heads = self._layers[0].heads
        compiled = packed_attention.usable(self._embedding, heads)
        buckets = make_buckets(lengths, self.device, apart=self.device.type == "cpu" and not compiled)
        cache = Cache(len(self._layers), lengths, repeats, room, heads, self._cache_dtype(), self.device)
        x = self._embed(torch.cat(list(prompts)))
        for index, layer in enumerate(self._layers):
            qkv = self._projections(x, layer, lora)
            if packed_attention.usable(qkv, layer.heads):
                cache.fill(index, *packed_attention.keys_values(qkv, cos, sin, layer.heads))
                mixed = packed_attention.attention(qkv, cos, sin, layer.heads, buckets)
            else:
                q, k, v, _ = queries_keys(qkv, layer.heads, cos, sin)
                cache.fill(index, k, v)
                mixed = attend(q, k, v, layer.heads, buckets).flatten(1)
            x = self._rest(mixed, x, layer, lora)
        hidden_ND = rms_norm(x, self._final_norm, self._eps)[0]
        ends = torch.tensor(lengths, device=self.device).cumsum(0) - 1
        return cache, hidden_ND, hidden_ND[ends].repeat_interleave(torch.tensor(repeats, device=self.device), 0)

    @torch.no_grad()
    def step(self, state: Cache, tokens_B: Tensor, lora: ActiveLora | None) -> Tensor:
        """Append one token a row."""
        state.advance()
        cos, sin = self._cos_sin(state.positions_B, state.longest)
        x = self._embed(tokens_B)
        for index, layer in enumerate(self._layers):
            qkv = self._projections(x, layer, lora)
            if packed_attention.usable(qkv, layer.heads):
                mixed = state.attend_fused(index, qkv, cos, sin, layer.heads)
            else:
                q, k, v, _ = queries_keys(qkv, layer.heads, cos, sin)
                mixed = state.attend(index, q, k, v, layer.heads).to(self.dtype)
            x = self._rest(mixed, x, layer, lora)
        return rms_norm(x, self._final_norm, self._eps)[0]

    def keep(self, state: Cache, rows: Tensor) -> Cache:
        """The cache with only ``rows`` left, in their order."""
        return state.keep(rows)

    def join(self, state: Cache, new: Cache) -> Cache:
        """The rows of ``state``, then those of ``new``, which has been prefilled only."""
        return state.join(new)

    def _projections(self, x: Tensor, layer: _Layer, lora: ActiveLora | None) -> Tensor:
        normed = rms_norm(x, layer.input_norm, self._eps)[0]
        return lora_forward(normed, layer.qkv, Lora.of(layer.qkv, lora))[0]

    def _cache_dtype(self) -> torch.dtype:
        """Torch's fp32 products over the cache are twice as fast as its bf16 ones on a CPU: a row has few queries."""
        is_plain = self.device.type == "cpu" and not packed_attention.usable(self._embedding, self._layers[0].heads)
        return torch.float32 if is_plain else self.dtype

    def _rest(self, mixed: Tensor, x: Tensor, layer: _Layer, lora: ActiveLora | None) -> Tensor:
        x = lora_forward(mixed, layer.output, Lora.of(layer.output, lora), x)[0]
        normed = rms_norm(x, layer.middle_norm, self._eps)[0]
        wide = lora_forward(normed, layer.gate_up, Lora.of(layer.gate_up, lora))[0]
        return lora_forward(gated(wide, self._activation), layer.down, Lora.of(layer.down, lora), x)[0]

    def _embed(self, tokens: Tensor) -> Tensor:
        x = nn.functional.embedding(tokens, self._embedding)
        return x if self._embed_scale == 1.0 else x * self._embed_scale

    def _cos_sin(self, positions: Tensor, longest: int) -> tuple[Tensor, Tensor]:
        """Angles [N, 1, E] of ``positions``, out of a table that doubles when it is outgrown."""
        if self._angles is None or len(self._angles[0]) < longest + 1:
            every = torch.arange(max(256, 2 * (longest + 1)), device=self.device)
            cos, sin = self._rotary(self._embedding[:1], every.unsqueeze(0))
            self._angles = (cos[0].unsqueeze(1).contiguous(), sin[0].unsqueeze(1).contiguous())
        return self._angles[0][positions], self._angles[1][positions]

    def cache_bytes(self, tokens: int) -> int:
        """Bytes of cache that ``tokens`` places take."""
        heads = self._layers[0].heads
        return 2 * tokens * len(self._layers) * heads.key * heads.size * self._cache_dtype().itemsize

    def parameters(self) -> int:
        """Number of base parameters; tied ones count once."""
        return self._parameters

    def nbytes(self) -> int:
        """Bytes of memory the weights hold."""
        return self._parameters * self.dtype.itemsize + self._packed

    def describe(self) -> dict[str, Any]:
        """What ran."""
        fused = packed_attention.usable(self._embedding, self._layers[0].heads)
        return {
            "implementation": "packed",
            "architecture": self._architecture,
            "kernels": fused,
            "rows_alone": self._rows_alone,
        }


class _FinalNorm(torch.autograd.Function):
    """The norm before the unembedding."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Returns [N, D]."""
        y, root = rms_norm(x, weight, eps)
        ctx.save_for_backward(x, root, weight)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        """Gradient by x."""
        from .packed_layers import rms_norm_backward

        x, root, weight = ctx.saved_tensors
        return rms_norm_backward(grad, x, root, weight), None, None


def _take_layer(layer: Any, name: str, config: Any, *, packed: bool) -> _Layer:
    """Move one decoder layer's weights into stacked matrices, freeing the originals."""
    attention, mlp = layer.self_attn, layer.mlp
    if hasattr(attention, "qkv_proj"):
        qkv = _stack(attention, f"{name}.self_attn", ("qkv_proj",), packed)
        gate_up = _stack(mlp, f"{name}.mlp", ("gate_up_proj",), packed)
    else:
        qkv = _stack(attention, f"{name}.self_attn", ("q_proj", "k_proj", "v_proj"), packed)
        gate_up = _stack(mlp, f"{name}.mlp", ("gate_proj", "up_proj"), packed)
    size = int(attention.head_dim)
    heads = Heads(
        query=int(config.num_attention_heads),
        key=int(config.num_key_value_heads),
        size=size,
        scale=float(attention.scaling),
        window=_window(attention, config),
        norm=_head_norms(attention, config) if hasattr(attention, "q_norm") else None,
        eps=float(config.rms_norm_eps),
    )
    return _Layer(
        heads=heads,
        input_norm=_norm_weight(layer.input_layernorm),
        qkv=qkv,
        output=_stack(attention, f"{name}.self_attn", ("o_proj",), packed),
        middle_norm=_norm_weight(layer.post_attention_layernorm),
        gate_up=gate_up,
        down=_stack(mlp, f"{name}.mlp", ("down_proj",), packed),
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
    if not packed:
        return Linear(weight, bias, names, widths)
    return Linear(None, bias, names, widths, (pack(weight), pack(weight.t())), int(weight.shape[1]))


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
