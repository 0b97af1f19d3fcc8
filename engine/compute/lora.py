# pyright: basic
# Reason: torch tensors and numpy arrays across an untyped seam.
"""LoRA tensors: how they are made, kept, named and exchanged with PEFT.

All pairs of an adapter live in one flat fp32 vector [P], so that the optimizer step is a handful of operations and a
checkpoint is exact. W' = W + (alpha / r) B A with alpha 32 (Schulman et al. 2025, "LoRA Without Regret").
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..interface import LoraSpec, RequestRejectedError, Tensors, Weights
from .backbone import ActiveLora, LoraPair, Site, chosen_sites

ALPHA = 32
PREFIX = "base_model.model."


@dataclass(frozen=True, slots=True)
class _Part:
    """One tensor's place in the flat vector."""

    site: Site
    side: str
    start: int
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)


class LoraLayout:
    """Where each pair of an adapter lies in its flat vector; the same for weights, gradients and moments."""

    def __init__(self, sites: list[Site], spec: LoraSpec) -> None:
        if spec.rank < 1:
            raise RequestRejectedError(f"a LoRA rank must be at least 1, got {spec.rank}")
        self.sites = chosen_sites(sites, spec)
        if not self.sites:
            raise RequestRejectedError("train_mlp, train_attn and train_unembed are all false: nothing to train")
        self.spec = spec
        self.scaling = ALPHA / spec.rank
        self.parts: list[_Part] = []
        start = 0
        for site in self.sites:
            experts = (site.experts,) if site.experts else ()
            for side, shape in (("A", (spec.rank, site.d_in)), ("B", (site.d_out, spec.rank))):
                part = _Part(site, side, start, (*experts, *shape))
                self.parts.append(part)
                start += part.size
        self.size = start

    def views(self, flat_P: Tensor) -> Iterator[tuple[_Part, Tensor]]:
        """Each tensor as a view of ``flat_P``."""
        for part in self.parts:
            yield part, flat_P[part.start : part.start + part.size].view(part.shape)

    def initial(self) -> Tensor:
        """Fresh weights: A uniform within 1/sqrt(d_in), B zero. One seed makes the same tensors on every machine."""
        rng = np.random.default_rng(self.spec.seed)
        flat_P = torch.zeros(self.size, dtype=torch.float32)
        for part, view in self.views(flat_P):
            if part.side == "A":
                bound = 1.0 / math.sqrt(part.site.d_in)
                view.copy_(torch.from_numpy(rng.uniform(-bound, bound, part.shape).astype(np.float32)))
        return flat_P

    def active(self, flat_P: Tensor, dtype: torch.dtype, *, grad: bool) -> ActiveLora:
        """Pairs in compute dtype; with ``grad`` they are leaves that collect gradients."""
        tensors: dict[str, dict[str, Tensor]] = {}
        cast = flat_P.to(dtype)
        for part, view in self.views(cast):
            tensors.setdefault(part.site.name, {})[part.side] = view.detach().requires_grad_(grad)
        pairs = {name: LoraPair(sides["A"], sides["B"]) for name, sides in tensors.items()}
        return ActiveLora(pairs, self.scaling)

    def export(self, flat_P: Tensor) -> dict[str, NDArray[np.float32]]:
        """Tensors under PEFT's names."""
        host = flat_P.detach().to("cpu", torch.float32)
        return {peft_name(part.site, part.side): _to_peft(part, view.numpy()) for part, view in self.views(host)}

    def read(self, tensors: Tensors) -> Tensor:
        """The flat vector of tensors under PEFT's names.

        Raises:
            RequestRejectedError: If one is missing, surplus or of another shape.
        """
        flat_P = torch.empty(self.size, dtype=torch.float32)
        left = set(tensors)
        for part, view in self.views(flat_P):
            name = peft_name(part.site, part.side)
            if name not in tensors:
                raise RequestRejectedError(f"the checkpoint has no {name}: it is of another model or LoRA setting")
            left.discard(name)
            array = np.asarray(tensors[name], dtype=np.float32)
            if array.shape != peft_shape(part):
                raise RequestRejectedError(f"{name} has shape {array.shape}, this adapter needs {peft_shape(part)}")
            view.copy_(torch.from_numpy(_from_peft(part, array)))
        if left:
            raise RequestRejectedError(
                f"the checkpoint has tensors this adapter does not know: {', '.join(sorted(left)[:3])}"
            )
        return flat_P


def peft_name(site: Site, side: str) -> str:
    """PEFT's name of a tensor. Of two adapted parameters of one module, PEFT wraps the second around the first."""
    if not site.experts:
        return f"{PREFIX}{site.name}.lora_{side}.weight"
    module, parameter = site.name.rsplit(".", 1)
    inner = "base_layer." if parameter == "gate_up_proj" else ""
    return f"{PREFIX}{module}.{inner}lora_{side}.weight"


def peft_shape(part: _Part) -> tuple[int, ...]:
    """PEFT keeps the experts' tensors in two dimensions: A [E r, d_in], B [d_out, r E]."""
    if not part.site.experts:
        return part.shape
    experts, rows, columns = part.shape
    return (experts * rows, columns) if part.side == "A" else (rows, columns * experts)


def _to_peft(part: _Part, array: NDArray[np.float32]) -> NDArray[np.float32]:
    if not part.site.experts:
        return array.copy()
    if part.side == "A":
        return array.reshape(peft_shape(part)).copy()
    return np.ascontiguousarray(array.transpose(1, 2, 0)).reshape(peft_shape(part))


def _from_peft(part: _Part, array: NDArray[np.float32]) -> NDArray[np.float32]:
    if not part.site.experts:
        return np.ascontiguousarray(array)
    if part.side == "A":
        return np.ascontiguousarray(array).reshape(part.shape)
    experts, rows, columns = part.shape
    return np.ascontiguousarray(array.reshape(rows, columns, experts).transpose(2, 0, 1))


def peft_config(layout: LoraLayout, all_sites: list[Site], *, base: str, fan_in_fan_out: bool) -> dict[str, Any]:
    """The ``adapter_config.json`` under which ``peft`` (and what reads PEFT's format) loads the exported tensors."""
    linear = [site.name for site in layout.sites if not site.experts]
    experts = [site.name for site in layout.sites if site.experts]
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": layout.spec.rank,
        "lora_alpha": ALPHA,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": fan_in_fan_out,
        "inference_mode": True,
        "init_lora_weights": True,
        "target_modules": _short_names(linear, [site.name for site in all_sites if not site.experts]),
    }
    if experts:
        config["target_parameters"] = sorted({".".join(name.split(".")[-3:]) for name in experts})
    return config


def _short_names(chosen: list[str], every: list[str]) -> list[str]:
    """Last components where they mean exactly the chosen modules (what every reader expects), else full names."""
    short = {name.rsplit(".", 1)[-1] for name in chosen}
    matched = [name for name in every if name.rsplit(".", 1)[-1] in short]
    return sorted(short) if sorted(matched) == sorted(chosen) else chosen


class LoraWeights(Weights):
    """A frozen snapshot for sampling: the pairs in compute dtype."""

    def __init__(self, layout: LoraLayout, flat_P: Tensor, dtype: torch.dtype) -> None:
        self.lora = layout.active(flat_P, dtype, grad=False)


def optimizer_tensors(tensors: Mapping[str, Any], size: int) -> tuple[Tensor, Tensor, int]:
    """Check and read exported moments.

    Raises:
        RequestRejectedError: If one is missing or of another size.
    """
    if set(tensors) != {"exp_avg", "exp_avg_sq", "step"}:
        raise RequestRejectedError(f"the optimizer state has tensors {sorted(tensors)}, not exp_avg, exp_avg_sq, step")
    mean, square = (np.asarray(tensors[key], dtype=np.float32) for key in ("exp_avg", "exp_avg_sq"))
    if mean.shape != (size,) or square.shape != (size,):
        raise RequestRejectedError(f"the optimizer state is of shape {mean.shape}, this adapter needs ({size},)")
    step = int(np.asarray(tensors["step"]).reshape(-1)[0])
    return torch.from_numpy(mean.copy()), torch.from_numpy(square.copy()), step
