# pyright: basic
# Reason: walks torch and transformers modules, whose attributes are untyped.
"""Which matrices of a transformers model take a LoRA pair, and in which group they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from sota_ml_researcher.core.errors import ModelError
from sota_ml_researcher.engine.interface import LoraSpec

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
