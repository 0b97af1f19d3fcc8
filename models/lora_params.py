"""How many parameters a LoRA adapter has, module by module, from a model's config alone.

An adapted matrix of shape d_out x d_in costs ``rank * (d_in + d_out)``: B is d_out x rank and A is rank x d_in
(Hu et al. 2021, arXiv 2106.09685). Everything else follows from which matrices the model has.

Three schemes differ in what they do with a mixture of experts (E experts of width i, hidden size h):

- ``shared_outer``, hosted Tinker: gate, up and down are adapted for each expert, but the factor on the hidden side is
  one for all experts of a layer: 3 (h + E i) per layer and rank. Tinker also adapts only what reads or writes the
  residual stream: not the inner matrices of latent attention, nor the small gates of linear attention.
- ``fused_experts``, the embedded engine and ``peft`` on transformers 5, which stacks gate and up of all experts in one
  parameter: E (h + 2 i) + E (i + h).
- ``per_expert``, ``peft`` on models that hold each expert as three matrices: 3 E (h + i).

Dense models count the same in all three. Routers, norms, biases, convolutions and the input embedding have no adapter
in any; tied embeddings are adapted once, as the unembedding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import Literal

from pydantic import BaseModel, Field

from ..core.errors import ConfigError
from ..core.memory import MatrixSize, ModelShape
from ..core.names import COMPONENTS, Component
from .configs import ModelConfig
from .lora_architectures import Matrix, Scheme, Side, adapted_matrices
from .model_catalog import ComponentCounts, catalog_entry, load_catalog

SCHEME_OF_BACKEND: dict[str, Scheme] = {"tinker": "shared_outer", "embedded": "fused_experts", "cluster": "per_expert"}
NOT_ADAPTED = "norms, biases, convolutions, routers and the input embedding have no adapter"
TIED = "the embeddings are tied: the matrix is adapted once, where it makes logits"


class ModuleCount(BaseModel, frozen=True):
    """One kind of matrix that gets an adapter."""

    name: str
    component: Component
    d_in: int = Field(description="inputs of one matrix")
    d_out: int = Field(description="outputs of one matrix")
    per_layer: int = Field(description="matrices of this shape in one layer: the number of experts, else 1")
    layers: int = Field(description="layers that have it")
    shared_factor: Side = Field(description="the side whose factor all experts share")
    parameters_per_rank: int = Field(description="over all layers, at rank 1")


class LoraCount(BaseModel, frozen=True):
    """LoRA parameters of one model at rank 1.

    Attributes:
        scheme: How experts are adapted (see the module).
        source: ``config``: computed from the config; ``table``: the platform's own count, with the computed modules
            where they agree with it and none where the config is not known.
        per_rank: Parameters at rank 1 by component.
        modules: The matrices, in the order they stand in a layer.
        notes: What a reader should know about this count, in plain sentences.
    """

    scheme: Scheme
    source: Literal["config", "table"]
    per_rank: ComponentCounts
    modules: tuple[ModuleCount, ...]
    notes: tuple[str, ...] = ()

    def parameters(self, rank: int, apply_to: Collection[Component] = COMPONENTS) -> ComponentCounts:
        """Parameters at ``rank`` of the chosen components, zero for the others.

        Raises:
            ConfigError: If ``rank`` is below 1, or ``apply_to`` is empty or names something else.
        """
        chosen = check_components(apply_to)
        if rank < 1:
            raise ConfigError(f"the rank must be at least 1, got {rank}", where="lora_rank")
        counts = self.per_rank.model_dump()
        return ComponentCounts(**{name: counts[name] * rank if name in chosen else 0 for name in COMPONENTS})


def check_components(apply_to: Collection[str]) -> tuple[Component, ...]:
    """The components named, in canonical order.

    Raises:
        ConfigError: If there are none, or one is not of mlp, attn, unembed.
    """
    if wrong := sorted(set(apply_to) - set(COMPONENTS)):
        raise ConfigError(f"unknown part {wrong[0]!r}", where="apply_to", fix=f"Choose from {', '.join(COMPONENTS)}")
    if not apply_to:
        raise ConfigError("nothing to train", where="apply_to", fix=f"Choose from {', '.join(COMPONENTS)}")
    return tuple(component for component in COMPONENTS if component in apply_to)


def count_lora(config: ModelConfig, *, backend: str) -> LoraCount:
    """The LoRA parameters of ``config`` as ``backend`` makes adapters.

    On hosted Tinker the platform's own table has the last word where it knows the model.

    Raises:
        ModelError: If the config lacks a size, or has experts or layers of a kind whose shapes are not known here.
    """
    scheme = SCHEME_OF_BACKEND[backend]
    entry = catalog_entry(config.name)
    measured = entry.lora_per_rank if entry and scheme == "shared_outer" else None
    if measured is not None and not config.model_type:
        note = f"the platform's own count ({load_catalog().source}); its modules are not known here"
        return LoraCount(scheme=scheme, source="table", per_rank=measured, modules=(), notes=(note,))
    computed = count_from_config(config, scheme)
    if measured is None or measured == computed.per_rank:
        return computed
    note = (
        f"the platform's own count ({load_catalog().source}) is shown; the config gives "
        f"{computed.per_rank.total:,} per rank instead of {measured.total:,}"
    )
    return LoraCount(scheme=scheme, source="table", per_rank=measured, modules=(), notes=(note,))


def count_from_config(config: ModelConfig, scheme: Scheme) -> LoraCount:
    """The LoRA parameters computed from the config, whatever any table says.

    Raises:
        ModelError: As ``count_lora``.
    """
    matrices, notes = adapted_matrices(config, scheme)
    layers = Counter(matrices)
    modules = tuple(_module(matrix, count) for matrix, count in layers.items())
    sums = {part: sum(m.parameters_per_rank for m in modules if m.component == part) for part in COMPONENTS}
    per_rank = ComponentCounts(**sums)
    tied = (TIED,) if config.values.get("tie_word_embeddings") else ()
    notes = (*notes, NOT_ADAPTED, *tied)
    return LoraCount(scheme=scheme, source="config", per_rank=per_rank, modules=modules, notes=notes)


def model_shape(config: ModelConfig) -> ModelShape:
    """What of ``config`` decides how much memory the embedded engine needs for it. Vision towers are not counted.

    Raises:
        ModelError: As `count_from_config`.
    """
    matrices, _ = adapted_matrices(config, SCHEME_OF_BACKEND["embedded"])
    return ModelShape.of(config.values, [MatrixSize(m.component, m.d_in, m.d_out, m.copies) for m in matrices])


def _module(matrix: Matrix, layers: int) -> ModuleCount:
    return ModuleCount(
        name=matrix.name,
        component=matrix.component,
        d_in=matrix.d_in,
        d_out=matrix.d_out,
        per_layer=matrix.copies,
        layers=layers,
        shared_factor=matrix.shared,
        parameters_per_rank=layers * matrix.parameters_per_rank,
    )


class RankCheck(BaseModel, frozen=True):
    """Whether a backend takes a rank, and which ranks near it it does."""

    rank: int
    accepted: bool
    nearest: tuple[int, ...] = Field(description="accepted ranks nearest to it, the smaller first; itself if accepted")
    reason: str
    rule_id: str = "lora.rank.power_of_two"


def accepted_rank(rank: int, backend: str, *, max_rank: int | None = None) -> RankCheck:
    """Say whether ``backend`` takes ``rank``: hosted Tinker only powers of two, the embedded engine any from 1.

    Args:
        rank: The rank asked for.
        backend: ``embedded``, ``tinker`` or ``cluster`` (which is not known to refuse any).
        max_rank: The platform's largest for this model, where known.
    """
    limit = max_rank if backend == "tinker" else None
    below, above = _neighbours(rank, backend)
    if limit is not None and rank > limit:
        nearest, reason = (limit,), f"the largest for this model is {limit}"
    elif rank < 1:
        nearest, reason = (1,), "a rank is at least 1"
    elif below == rank:
        nearest, reason = (rank,), f"the {backend} backend takes it"
    else:
        nearest = tuple(r for r in (below, above) if limit is None or r <= limit)
        reason = "Tinker takes powers of two only"
    return RankCheck(rank=rank, accepted=rank in nearest, nearest=nearest, reason=reason)


def require_accepted_rank(rank: int, backend: str, *, where: str = "lora_rank", max_rank: int | None = None) -> None:
    """Refuse a rank that the backend would refuse.

    Raises:
        ConfigError: If it would; the message names the nearest accepted ranks.
    """
    check = accepted_rank(rank, backend, max_rank=max_rank)
    if not check.accepted:
        choices = " or ".join(str(near) for near in check.nearest)
        raise ConfigError(f"rank {rank} is not accepted: {check.reason}", where=where, fix=f"Use {choices}")


def smallest_accepted(least: int, backend: str, *, largest: int) -> int | None:
    """The smallest accepted rank that is at least ``least``, or None if it is above ``largest``."""
    least = max(1, least)
    below, above = _neighbours(least, backend)
    rank = below if below == least else above
    return rank if rank <= largest else None


def _neighbours(rank: int, backend: str) -> tuple[int, int]:
    """The accepted ranks next to ``rank``; both are ``rank`` itself where it is accepted."""
    if backend != "tinker" or rank < 1:
        return rank, rank
    below = 1 << (rank.bit_length() - 1)
    return (below, below) if below == rank else (below, 2 * below)
