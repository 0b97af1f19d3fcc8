"""What a forward pass is to the rest of the engine, whichever implementation runs it, and what of it is adapted.

Axes: ``N`` packed tokens, ``B`` rows being sampled, ``D`` hidden size, ``V`` vocabulary, ``R`` LoRA rank.
"""
# pyright: basic
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
from .row_blocks import RowBlocks

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


class LoraPair(NamedTuple):
    """One LoRA pair in compute dtype: A of shape [R, d_in] and B of [d_out, R], with a leading [E] for experts."""

    a: Tensor
    b: Tensor


@dataclass(frozen=True, slots=True)
class ActiveLora:
    """The pairs that take part in a forward pass, by site name; each adds ``scaling * B A x``.

    ``stacked`` is where an implementation keeps what it derives from the pairs.
    """

    pairs: Mapping[str, LoraPair]
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


class KeyValueCache(Protocol):
    """Keys and values of the rows being sampled."""

    def keep(self, rows: Tensor) -> None:
        """Leave only ``rows`` (indices, on the CPU), renumbered from 0 in their order."""
        ...

    def join(self, other: Any) -> None:
        """Take in the rows of another cache, fresh from ``prefill``; they come last."""
        ...


class Backbone(Protocol):
    """Embedding, layers and final norm of a frozen base model, with LoRA pairs passed in.

    Attributes:
        head: The unembedding.
        dtype: Of the weights and of what is computed.
        device: Where.
        sites: Every matrix that can be adapted.
        parameters: Number of base parameters; tied ones count once.
        longest_tree: Most tokens of a tree of sequences (`prefix_trees`) that ``hidden`` takes; 0 if it takes none.
        apart: Whether each request needs keys and values, and passes, of its own.
        shared_length: Longest sequence that ``hidden`` takes in a tree where no gradient is wanted; 0 if it takes none.
        description: What runs: for people and for benchmarks.
    """

    head: Head
    dtype: torch.dtype
    device: torch.device
    sites: list[Site]
    parameters: int
    longest_tree: int
    apart: bool
    shared_length: int
    description: dict[str, Any]

    def hidden(self, batch: PackedTokens, lora: ActiveLora | None) -> Tensor:
        """Final hidden states [N, D]; differentiable in the pairs of ``lora``, unless the batch is ``rowwise``."""
        ...

    def prefill(
        self, prompts: Sequence[Tensor], repeats: Sequence[int], room: int, lora: ActiveLora | None
    ) -> tuple[KeyValueCache, Tensor, Tensor]:
        """Read prompts and make a cache with ``room`` free places per row.

        Returns:
            The cache, with prompt i in ``repeats[i]`` consecutive rows; the hidden states [N, D] of all prompt
            tokens packed; and those of the last prompt token, one per row [B, D].
        """
        ...

    def step(self, state: Any, tokens_B: Tensor, lora: ActiveLora | None) -> Tensor:
        """Append one token per row and return its hidden states [B, D]."""
        ...

    def head_blocks(self, lora: ActiveLora | None) -> RowBlocks | None:
        """In which blocks to compute logits so that no row's hidden states or logits depend on the other rows.

        None where there are none: then requests must be sampled one after another.
        """
        ...


def find_sites(model: nn.Module) -> list[Site]:
    """Every matrix that can be adapted, in the model's own order, the unembedding last.

    Raises:
        ModelError: If the model has no output embedding: it is not a causal LM.
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
    parts = name.lower().split(".")
    group: Group = "attn" if any(word in part for part in parts for word in _ATTENTION_WORDS) else "mlp"
    d_in, d_out = module.weight.shape if isinstance(module, Conv1D) else (module.in_features, module.out_features)
    return Site(name, group, int(d_in), int(d_out))  # type: ignore[arg-type]


def _expert_sites(name: str, module: nn.Module) -> list[Site]:
    """Transformers 5 keeps all experts of a layer in one 3-D parameter: [E, d_out, d_in], or transposed."""
    own = {key: value for key, value in module.named_parameters(recurse=False) if value.ndim == 3}
    if not own or not any("expert" in part for part in name.lower().split(".")):
        return []
    transposed = bool(getattr(module, "is_transposed", False))
    sites: list[Site] = []
    for key, weight in own.items():
        experts, rows, columns = weight.shape
        d_in, d_out = (rows, columns) if transposed else (columns, rows)
        sites.append(Site(f"{name}.{key}", "mlp", d_in, d_out, experts, transposed))
    return sites
