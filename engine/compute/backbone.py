"""What a forward pass is to the rest of the engine, whichever implementation runs it.

Axes: ``N`` packed tokens, ``B`` rows being sampled, ``D`` hidden size, ``V`` vocabulary, ``R`` LoRA rank.
"""
# pyright: basic
# Reason: protocols over torch tensors shared by both implementations of the forward pass.
# Reason: walks torch and transformers modules, whose attributes are untyped.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ...core.errors import ModelError
from ..interface import LoraSpec
from .packing import PackedTokens

Group = Literal["attn", "mlp", "unembed"]
# A router decides which expert sees a token; it stays frozen on the platform, and in PEFT's usual targets.
_ROUTER_NAMES = frozenset({"gate", "router", "shared_expert_gate", "classifier"})
_ATTENTION_WORDS = ("attn", "attention", "mixer")


@dataclass(frozen=True, slots=True)
class Site:
    """One adapted matrix of shape [d_out, d_in], or ``experts`` of them stacked in one parameter."""

    name: str
    group: Group
    d_in: int
    d_out: int
    experts: int = 0
    transposed: bool = False

    @property
    def a_shape(self) -> tuple[int, ...]:
        """Leading dimensions and d_in of A, without the rank: ``(E,)`` for experts, else ``()``."""
        return (self.experts,) if self.experts else ()


def find_sites(model: nn.Module) -> list[Site]:
    """Every matrix that can be adapted, in the model's own order, the unembedding last.

    Raises:
        ModelError: If the model has no output embedding (it is no causal LM).
    """
    unembedding = model.get_output_embeddings()  # type: ignore[operator]
    if unembedding is None:
        raise ModelError("the model has no output embedding", fix="Choose a causal language model")
    sites: list[Site] = []
    head: list[Site] = []
    for name, module in model.named_modules():
        if module is unembedding:
            head.append(Site(name, "unembed", cast("int", module.in_features), cast("int", module.out_features)))
        elif isinstance(module, nn.Linear | Conv1D) or type(module).__name__ in {"Linear4bit", "Linear8bitLt"}:
            if name.rsplit(".", 1)[-1] not in _ROUTER_NAMES:
                sites.append(_linear_site(name, module))
        else:
            sites.extend(_expert_sites(name, module))
    return sites + head


def chosen_sites(sites: list[Site], spec: LoraSpec) -> list[Site]:
    """The sites that ``spec`` trains."""
    wanted = {"attn": spec.train_attn, "mlp": spec.train_mlp, "unembed": spec.train_unembed}
    return [site for site in sites if wanted[site.group]]


def _linear_site(name: str, module: nn.Module) -> Site:
    if isinstance(module, Conv1D):
        d_in, d_out = module.weight.shape
        return Site(name, _group(name), int(d_in), int(d_out))
    return Site(name, _group(name), int(module.in_features), int(module.out_features))  # type: ignore[arg-type]


def _group(name: str) -> Group:
    parts = name.lower().split(".")
    return "attn" if any(word in part for part in parts for word in _ATTENTION_WORDS) else "mlp"


def _expert_sites(name: str, module: nn.Module) -> list[Site]:
    """Transformers 5 keeps all experts of a layer in one 3-D parameter: [E, d_out, d_in], or transposed."""
    own = {key: value for key, value in module.named_parameters(recurse=False) if value.ndim == 3}
    if not own or not any("expert" in part for part in name.lower().split(".")):
        return []
    transposed = bool(getattr(module, "is_transposed", False))
    return [_expert_site(f"{name}.{key}", value, transposed) for key, value in own.items()]


def _expert_site(name: str, weight: torch.Tensor, transposed: bool) -> Site:
    experts, rows, columns = (int(size) for size in weight.shape)
    d_out, d_in = (columns, rows) if transposed else (rows, columns)
    return Site(name, "mlp", d_in, d_out, experts, transposed)


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
