# pyright: basic
# Reason: joins torch-heavy parts; their objects are untyped.
"""Loading a base model: the one entry point from the protocol side into the compute side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...core.errors import ConfigError
from ..interface import (
    Arrivals,
    BaseModel,
    Finished,
    LoadOptions,
    LoraSpec,
    SampleAsk,
    SampleOutput,
    SampleSettings,
    Tensors,
    Weights,
)
from .adapter import TrainedAdapter, memory_errors
from .backbone import Backbone
from .loading import Loaded, load_pretrained, set_threads, tune_allocator
from .lora import LoraLayout, LoraWeights, peft_config
from .loss_pass import ForwardCache
from .packed import PackedBackbone, is_supported
from .packing import ModelLimits
from .sampling import Sampler, check_request
from .transformers_backbone import TransformersBackbone

_EXTRA_KEYS = frozenset({"implementation", "batch_tokens", "cache_tokens", "gradient_checkpointing"})


class LoadedModel(BaseModel):
    """A frozen base model that adapters train on and sample from."""

    def __init__(self, name: str, path: str, loaded: Loaded, backbone: Backbone, options: LoadOptions) -> None:
        text = loaded.config.get_text_config()
        self._path = path
        self._backbone = backbone
        self._limits = ModelLimits(backbone.head.weight_VD.shape[0], _context_length(text))
        self._fan_in_fan_out = text.model_type == "gpt2"
        chosen = loaded.running.fit
        self._budget_tokens = chosen.batch.tokens
        self._forwards = ForwardCache()
        self._sampler = Sampler(backbone, self._limits, loaded.tokenizer, chosen.cache_tokens)
        self.name = name
        self.tokenizer = loaded.tokenizer
        self.max_context_length = self._limits.context
        self.description = {
            **backbone.description,
            "device": str(backbone.device),
            "dtype": str(backbone.dtype).removeprefix("torch."),
            "stored_dtype": loaded.stored_dtype,
            "parameters": backbone.parameters,
            "vocabulary": self._limits.vocabulary,
            "threads": set_threads(options.threads),
            "weights_bytes": chosen.need.weights,
            "batch_tokens": chosen.batch.tokens,
            "gradient_checkpointing": chosen.batch.checkpointing,
        }

    def new_adapter(self, spec: LoraSpec) -> TrainedAdapter:
        """See ``BaseModel.new_adapter``."""
        with memory_errors(f"an adapter of rank {spec.rank}"):
            layout = LoraLayout(self._backbone.sites, spec)
            return TrainedAdapter(self._backbone, layout, self._limits, self._budget_tokens, self._forwards)

    def frozen(self, spec: LoraSpec, weights: Tensors) -> LoraWeights:
        """See ``BaseModel.frozen``."""
        layout = LoraLayout(self._backbone.sites, spec)
        return LoraWeights(layout, layout.read(weights).to(self._backbone.device), self._backbone.dtype)

    def adapter_config(self, spec: LoraSpec) -> dict[str, Any]:
        """See ``BaseModel.adapter_config``."""
        layout = LoraLayout(self._backbone.sites, spec)
        return peft_config(layout, self._backbone.sites, base=self._path, fan_in_fan_out=self._fan_in_fan_out)

    def sample(self, requests: Sequence[SampleSettings], weights: Sequence[Weights | None]) -> list[SampleOutput]:
        """See ``BaseModel.sample``."""
        with memory_errors("this sampling request"):
            return self._sampler.sample(requests, weights)

    def check_sample(self, request: SampleSettings) -> None:
        """See ``BaseModel.check_sample``."""
        check_request(request, self._limits, "request")

    def sample_stream(self, asks: Sequence[SampleAsk], arrivals: Arrivals, finished: Finished) -> None:
        """See ``BaseModel.sample_stream``."""
        with memory_errors("this sampling request"):
            self._sampler.stream(asks, arrivals, finished)


def load_model(name: str, path_or_id: str, options: LoadOptions) -> LoadedModel:
    """Load the model at ``path_or_id``.

    ``options.extra`` takes ``implementation`` (``auto`` or ``transformers``), ``batch_tokens`` (most tokens of one
    packed training batch), ``cache_tokens`` (most places of the sampling cache) and ``gradient_checkpointing`` (layers
    run again in the backward pass). What is left out is chosen to fit the memory, and both limits are lowered to fit.

    Raises:
        ModelError: If it cannot be had, is not a causal LM, has no tokenizer, or does not fit.
        ConfigError: If an option is unknown or impossible on this machine.
    """
    surplus = set(options.extra) - _EXTRA_KEYS
    if surplus:
        raise ConfigError(f"unknown option {min(surplus)!r}", fix=f"Known are {', '.join(sorted(_EXTRA_KEYS))}")
    tune_allocator()
    set_threads(options.threads)
    loaded = load_pretrained(path_or_id, options)
    return LoadedModel(name, path_or_id, loaded, _backbone(loaded, options), options)


def _backbone(loaded: Loaded, options: LoadOptions) -> Backbone:
    implementation = options.extra.get("implementation", "auto")
    if implementation not in ("auto", "transformers"):
        raise ConfigError(f"unknown implementation {implementation!r}", fix="Choose auto or transformers")
    running = loaded.running
    if implementation == "auto" and is_supported(loaded.module):
        return PackedBackbone(loaded.module, loaded.device, recomputes=running.recomputes)
    return TransformersBackbone(loaded.module, loaded.device, checkpointing=running.fit.batch.checkpointing)


def _context_length(config: Any) -> int:
    for key in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"):
        if getattr(config, key, None):
            return int(getattr(config, key))
    return 1 << 15
