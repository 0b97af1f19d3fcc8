"""What a model needs of a machine's memory to train a LoRA adapter on it, worked out before a weight is read.

The arithmetic of the embedded engine: the engine chooses its batch by it when it loads a model, and plans show it. It
stands in core because these two meet over HTTP alone. docs/benchmarks.md says how far it is from what was measured.

Symbols: ``D`` hidden size, ``I`` width of the feed-forward block that one token sees, ``H`` query heads, ``J`` key
heads, ``E`` head size, ``V`` vocabulary, ``T`` tokens of a sequence, ``N`` tokens of a batch. Sizes are bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from .errors import ModelError


class TooLargeError(ModelError):
    """A model for which there is no room; the message has the numbers and the nearest choice that fits."""


GIB = 2**30
# model_type of the families that the engine computes on packed tokens by backward passes of its own.
PACKED_FAMILIES = frozenset({"llama", "mistral", "qwen2", "qwen3", "gemma", "phi3"})
# Models of up to this share of the machine's memory keep their layers in two orders on a CPU in bfloat16.
PACKED_SHARE = 16
BATCH_TOKENS, CACHE_TOKENS, DEFAULT_RANK = 4096, 1 << 17, 32
# Smaller batches save little.
_LEAST_BATCH = 256
# Torch, transformers and the server on a CPU; on a GPU the kernels and workspaces of cuBLAS (not measured).
_PROCESS = {"cpu": 430 << 20, "mps": 430 << 20, "cuda": 512 << 20}
# Double-quantised 4-bit blocks of 64: Dettmers et al. 2023, arXiv 2305.14314, section 3, gives 4.127 bits; with the
# weights that bitsandbytes pads and keeps this is what is taken up.
_NF4_BYTES = 0.55
# fp32 weights, gradient and two moments; in a pass a copy, its gradient and the stacked pairs in the compute dtype.
_ADAPTER_BYTES, _ADAPTER_COPIES = 16, 3
# So many times as much as a layer of ours keeps one of transformers: counted 1.95 in float32 and 2.26 in bfloat16.
_TRANSFORMERS = 2.3
# Raw logits in compute dtype up to this size are kept for the backward pass instead of computed again.
KEPT_LOGITS = 64 << 20
# Blocks of logits stay in a CPU's cache where the vocabulary is small, and fill an accelerator; below so many rows the
# product itself gets slow.
LOGITS_BLOCK, ACCELERATOR_LOGITS_BLOCK, LOGITS_ROWS = 8 << 20, 1 << 28, 128
_LOGITS_COPIES = 4  # of a block, at a time
# Up to this length two plain matrix products beat torch's fused kernel on a CPU (3 times, at 128 tokens in bf16), and
# weights of sequences up to so many head sizes long are kept: per token they are then at most 4 times a query.
PLAIN_LENGTH, KEPT_LENGTHS = 1024, 4
# Limit and use of a container, versions 2 and 1.
_CGROUP_FILES = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


class MatrixSize(NamedTuple):
    """One matrix that can be adapted, [d_out, d_in], or ``copies`` of it (experts): attn, mlp or unembed."""

    part: str
    d_in: int
    d_out: int
    copies: int = 1


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What of a model decides its memory.

    Attributes:
        weights: Parameters; tied ones count once.
        linear: Those of them that 4-bit quantisation takes: matrices of layers, but not stacked experts.
        adapter: LoRA parameters at rank 1, all parts.
        packed: Whether the engine's own layers compute it; else transformers' modules do.
    """

    weights: int
    linear: int
    adapter: int
    layers: int
    hidden: int
    inner: int
    heads: int
    key_heads: int
    head_size: int
    vocabulary: int
    packed: bool

    @classmethod
    def of(cls, values: Mapping[str, Any], matrices: Iterable[MatrixSize]) -> ModelShape:
        """From the keys of a ``config.json`` and the matrices it leads to.

        A token is taken to see 8 experts where ``num_experts_per_tok`` is missing.

        Raises:
            ModelError: If a size is missing.
        """
        layers = _size(values, "num_hidden_layers", "n_layer")
        hidden, heads = (
            _size(values, "hidden_size", "n_embd", "d_model"),
            _size(values, "num_attention_heads", "n_head"),
        )
        seen, vocabulary = values.get("num_experts_per_tok") or 8, _size(values, "vocab_size")
        inside = [matrix for matrix in matrices if matrix.part != "unembed"]
        back = [m for m in inside if m.part == "mlp" and m.d_out == hidden]
        tied = bool(values.get("tie_word_embeddings"))
        return cls(
            weights=sum(m.d_in * m.d_out * m.copies for m in inside) + hidden * vocabulary * (1 if tied else 2),
            linear=sum(m.d_in * m.d_out for m in inside if m.copies == 1),
            adapter=sum((m.d_in + m.d_out) * m.copies for m in inside) + hidden + vocabulary,
            layers=layers,
            hidden=hidden,
            inner=sum(m.d_in * min(m.copies, seen) for m in back) // layers,
            heads=heads,
            key_heads=values.get("num_key_value_heads") or heads,
            head_size=values.get("head_dim") or hidden // heads,
            vocabulary=vocabulary,
            packed=values.get("model_type") in PACKED_FAMILIES,
        )


def _size(values: Mapping[str, Any], *keys: str) -> int:
    found = next((values[key] for key in keys if values.get(key) is not None), None)
    if not isinstance(found, int) or found < 1:
        raise ModelError(f"its config.json has no '{keys[0]}' above 0, so that its memory is not known")
    return found


@dataclass(frozen=True, slots=True)
class Room:
    """Where a model is to be computed, and what is free there.

    Attributes:
        device: cpu, cuda or mps.
        itemsize: Bytes of a number: 4 in float32, 2 in bfloat16.
        free: Bytes that may be used.
        total: Bytes that there are.
        nf4: Whether weights are quantised to 4 bits.
    """

    device: str
    itemsize: int
    free: int
    total: int
    nf4: bool = False


@dataclass(frozen=True, slots=True)
class Batch:
    """How a training pass is run: most tokens of one batch, tokens of a sequence, and whether layers run again."""

    tokens: int = BATCH_TOKENS
    length: int = 512
    checkpointing: bool = False


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """Bytes by what they are for. Training and sampling take turns: of activations and cache the larger one counts."""

    process: int
    weights: int
    adapter: int
    activations: int
    cache: int

    @property
    def total(self) -> int:
        """All that is needed at one time."""
        return self.process + self.weights + self.adapter + max(self.activations, self.cache)

    def __str__(self) -> str:
        return (
            f"{gib(self.total)} GiB (weights {gib(self.weights)}, adapter and optimizer {gib(self.adapter)}, "
            f"activations {gib(self.activations)} or sampling cache {gib(self.cache)}, process {gib(self.process)})"
        )


@dataclass(frozen=True, slots=True)
class Fit:
    """How a model is run on a machine: the batch, the places of the sampling cache, and what it needs then."""

    batch: Batch
    cache_tokens: int
    need: MemoryNeed


def gib(size: float) -> str:
    """Bytes in GiB, to three digits."""
    return f"{size / GIB:.{1 if size >= 10 * GIB else 2}f}"


def cache_place(shape: ModelShape, itemsize: int) -> int:
    """Bytes of keys and values of one token: 2 J E for each layer."""
    return 2 * shape.key_heads * shape.head_size * shape.layers * itemsize


def estimate(shape: ModelShape, room: Room, batch: Batch | None = None, *, rank: int = DEFAULT_RANK) -> MemoryNeed:
    """The need of training one adapter with batches like ``batch``, and of sampling one of its sequences."""
    batch, item = batch or Batch(), room.itemsize
    weights = shape.weights * item
    if room.nf4:
        weights = round((shape.weights - shape.linear) * item + shape.linear * _NF4_BYTES)
    elif room.device == "cpu" and item == 2 and shape.packed and weights <= room.total / PACKED_SHARE:
        weights += weights
    return MemoryNeed(
        process=_PROCESS[room.device],
        weights=weights,
        adapter=shape.adapter * rank * (_ADAPTER_BYTES + _ADAPTER_COPIES * item),
        activations=_activations(shape, room, batch, rank),
        cache=cache_place(shape, item) * max(batch.length, BATCH_TOKENS),
    )


def _activations(shape: ModelShape, room: Room, batch: Batch, rank: int) -> int:
    """What a forward pass leaves for the backward pass, what both work with meanwhile, and blocks of logits."""
    packed = shape.packed and not room.nf4
    plain = packed and room.device == "cpu" and batch.length <= PLAIN_LENGTH
    mixed, scores = shape.heads * shape.head_size, shape.heads * batch.length
    queries_keys = mixed + 2 * shape.key_heads * shape.head_size
    layer = 2 * shape.hidden + queries_keys + mixed + 2 * shape.inner + 7 * rank
    layer += scores if plain and batch.length <= KEPT_LENGTHS * shape.head_size else 0
    layer = layer if packed else round(layer * _TRANSFORMERS)
    kept = shape.layers * shape.hidden + layer if batch.checkpointing else shape.layers * layer
    working = 6 * shape.hidden + 2 * queries_keys + 8 * shape.inner + (4 * scores if plain else 16 * mixed)
    raw = batch.tokens * shape.vocabulary * room.itemsize
    row = shape.vocabulary * 4
    block = LOGITS_BLOCK if room.device == "cpu" else min(ACCELERATOR_LOGITS_BLOCK, batch.tokens * row)
    block = max(block, LOGITS_ROWS * row)
    logits = (raw if raw <= KEPT_LOGITS else 0) + _LOGITS_COPIES * block
    return batch.tokens * room.itemsize * (kept + working) + logits


def fit(
    shape: ModelShape,
    room: Room,
    *,
    rank: int = DEFAULT_RANK,
    wanted: Batch | None = None,
    cache_tokens: int = CACHE_TOKENS,
) -> Fit | None:
    """The way to run the model that is fastest of those that fit; None where none does.

    First layers run again in the backward pass: that takes a third more time, and every bit stays as it was. Only then
    the batch is halved, for gradients that are added in another order differ in their last digits, and what is free
    must not decide more of a run than it has to. A sequence is never cut: no batch is shorter than one.
    """
    wanted = wanted or Batch()
    for batch in _ways(wanted):
        need = estimate(shape, room, batch, rank=rank)
        if need.total <= room.free:
            place = cache_place(shape, room.itemsize)
            places = (room.free - need.total + max(need.activations, need.cache)) // place
            return Fit(batch, min(cache_tokens, places), need)
    return None


def _ways(wanted: Batch) -> Iterator[Batch]:
    tokens = wanted.tokens
    yield replace(wanted, tokens=max(tokens, wanted.length))
    while tokens >= _LEAST_BATCH:
        yield Batch(max(tokens, wanted.length), wanted.length, checkpointing=True)
        tokens //= 2


def refusal(
    shape: ModelShape, room: Room, name: str, *, rank: int = DEFAULT_RANK, length: int = 512, command: str = ""
) -> TooLargeError:
    """That the model does not fit, with the numbers and the nearest choice that does.

    Args:
        shape: The model.
        room: Where there is no room for it.
        name: How the user calls it.
        rank: Of the adapter.
        length: Tokens of its longest sequence.
        command: What the options that are proposed are given to; empty where they go to the program that refuses.
    """
    least = estimate(shape, room, Batch(max(_LEAST_BATCH, length), length, checkpointing=True), rank=rank)
    place = {"cuda": "the GPU's", "mps": "this machine's", "cpu": "this machine's"}[room.device]
    others = room.total - room.free
    held = f", for other programs hold {gib(others)}" if others > room.free and least.total <= room.total else ""
    problem = f"it needs {least} at the least, and {gib(room.free)} of {place} {gib(room.total)} GiB are free{held}"
    fix = "; ".join(_nearest(shape, room, rank, length, least, command)) or "take a larger machine"
    return TooLargeError(problem, where=name, fix=f"{fix[0].upper()}{fix[1:]}")


def _nearest(shape: ModelShape, room: Room, rank: int, length: int, least: MemoryNeed, command: str) -> Iterator[str]:
    batch = Batch(max(_LEAST_BATCH, length), length, checkpointing=True)
    if least.total <= room.total:
        yield "end what holds the memory"
    others = {"--dtype bfloat16": replace(room, itemsize=2)}
    if room.device == "cuda":
        others["--quantize nf4"] = replace(room, itemsize=2, nf4=True)
    for option, other in others.items():
        need = estimate(shape, other, batch, rank=rank)
        if other != room and need.total <= room.free:
            yield f"{f'run {command} ' if command else 'give '}{option}, with which it needs {gib(need.total)} GiB"
            break
    shorter = _LEAST_BATCH
    if length > shorter and estimate(shape, room, Batch(shorter, shorter, True), rank=rank).total <= room.free:
        while estimate(shape, room, Batch(2 * shorter, 2 * shorter, True), rank=rank).total <= room.free:
            shorter *= 2
        yield f"shorten sequences to {shorter:,} tokens"
    if rank > 1 and least.total - least.adapter * (rank - 1) // rank <= room.free:
        yield "take a smaller lora_rank"
    most = (room.free - (least.total - least.weights)) / (least.weights / shape.weights)
    if most > 1e7:
        yield f"take a model of at most {most / 1e9:.2g} billion parameters"


def free_ram() -> tuple[int, int]:
    """Bytes of main memory that may still be used, and all there are: of the machine, or of a container's limit."""
    import psutil

    machine = psutil.virtual_memory()
    free, total = int(machine.available), int(machine.total)
    for limit, used in _CGROUP_FILES:
        try:
            most, taken = int(Path(limit).read_text()), int(Path(used).read_text())
            stat = dict(line.split() for line in (Path(used).parent / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):  # no such controller, or no limit ("max")
            continue
        if most < total:
            taken -= int(stat.get("total_inactive_file") or stat.get("inactive_file") or 0)
            free, total = min(free, most - taken), most
    return max(0, free), total
