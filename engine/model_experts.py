# pyright: basic
# Reason: drives transformers modules, whose attributes are untyped.
"""LoRA on mixture-of-experts layers whose experts transformers 5 keeps in one 3-D parameter.

Each expert has its own pair, as PEFT's ``target_parameters`` has it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sota_ml_researcher.engine.model_parts import Pair
from sota_ml_researcher.engine.model_sites import Site

FindPair = Callable[[str], tuple[Pair, float] | None]


def expert_forward(module: nn.Module, sites: Sequence[Site], pair: FindPair) -> Callable[..., Tensor]:
    """A replacement for ``module.forward`` that adds each expert's pair.

    The usual layout (``gate_up_proj`` and ``down_proj``, no biases) runs expert by expert and adds the low-rank
    product to the activations. Any other layout keeps its own forward and gets whole adapted parameters.
    """
    if _is_gated_layout(module):
        prefix = sites[0].name.rsplit(".", 1)[0]
        return _gated_forward(module, prefix, pair)
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
            gate, up = _expert_linear(hidden_ND[tokens], cast("Tensor", module.gate_up_proj), expert, gate_up).chunk(
                2, dim=-1
            )
            out = _expert_linear(module.act_fn(gate) * up, module.down_proj, expert, down)  # type: ignore[operator]
            weighted = out * weights_NK.reshape(-1)[slots].unsqueeze(-1)
            result_ND = result_ND.index_add(0, tokens, weighted.to(result_ND.dtype))
        return result_ND

    return forward


def _expert_linear(x: Tensor, weight: Tensor, expert: int, found: tuple[Pair, float] | None) -> Tensor:
    base = F.linear(x, weight[expert])
    if found is None:
        return base
    (a, b), scaling = found
    return base + scaling * F.linear(F.linear(x.to(a.dtype), a[expert]), b[expert])


def _materialised_forward(module: nn.Module, sites: Sequence[Site], pair: FindPair) -> Callable[..., Tensor]:
    base = module.forward

    def forward(*args: Tensor, **kwargs: Tensor) -> Tensor:
        own = module._parameters
        originals = dict(own)
        try:
            for site in sites:
                found = pair(site.name)
                if found is None:
                    continue
                (a, b), scaling = found
                delta = scaling * torch.bmm(b, a)
                key = site.name.rsplit(".", 1)[1]
                own[key] = originals[key] + (delta.transpose(1, 2) if site.transposed else delta)  # type: ignore[assignment]
            return base(*args, **kwargs)
        finally:
            own.update(originals)

    return forward
