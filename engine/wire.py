"""Between the SDK's wire format and the engine's own types: protobuf and JSON on one side, numpy on the other."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from tinker import types
from tinker.proto import tinker_public_pb2 as pb

from .interface import (
    AdamSettings,
    Continuation,
    IntArray,
    LossResult,
    RequestRejectedError,
    SampleOutput,
    TrainItem,
)

PROTOBUF = "application/x-protobuf"
_DTYPES: dict[int, type[Any]] = {pb.DTYPE_FLOAT32: np.float32, pb.DTYPE_INT64: np.int64, pb.DTYPE_INT32: np.int32}
_MASK_LOGPROB = -99999.0
# What one request may make the engine hold, looked at before anything is allocated.
MOST_CELLS = 1 << 26
_MOST_PARTS = 1 << 18


@dataclass(frozen=True, slots=True)
class Encoded:
    """An answer as protobuf bytes, and the SDK's type for it."""

    payload: bytes
    response: type[Any]


@dataclass(frozen=True, slots=True)
class LossRequest:
    """A forward-backward request: its address read, its data still as they came.

    The data are decoded when their turn comes: a request that cannot be decoded then fails in its place in the order
    of its adapter, and the ones after it still run.
    """

    message: Any
    model_id: str
    seq_id: int
    loss: str
    forward_only: bool

    @classmethod
    def parse(cls, body: bytes) -> LossRequest:
        """Read a ``ForwardBackwardRequest``.

        Raises:
            RequestRejectedError: If the bytes are not such a message, or hold more parts than any real one.
        """
        message = pb.ForwardBackwardRequest()
        try:
            _check_parts(memoryview(body))
            message.ParseFromString(body)
        except (DecodeError, IndexError) as error:
            raise RequestRejectedError("the body is not a ForwardBackwardRequest message") from error
        return cls(message, message.model_id, message.seq_id, message.loss_fn, message.forward_only)

    def config(self) -> dict[str, Any]:
        """The loss's settings.

        Raises:
            RequestRejectedError: If one is text that no loss takes.
        """
        config: dict[str, Any] = {name: float(value) for name, value in self.message.loss_fn_config.items()}
        for name, value in self.message.loss_fn_config_v2.items():
            kind = value.WhichOneof("value")
            if kind is None:
                raise RequestRejectedError(f"the loss setting '{name}' has no value")
            if kind != "number" and not (self.loss == "custom" and name == "loss_id"):
                raise RequestRejectedError(f"the loss setting '{name}' is text; this engine knows numbers only")
            config[name] = getattr(value, kind)
        return config

    def items(self) -> list[TrainItem]:
        """The data.

        Raises:
            RequestRejectedError: If they carry what a text model cannot take, or bytes that do not fit their shapes.
        """
        tensors = [tensor for datum in self.message.data for tensor in datum.loss_fn_inputs.values()]
        if sum(_cells(tensor) for tensor in tensors) > MOST_CELLS:
            raise RequestRejectedError(
                f"the tensors of the request have more than {MOST_CELLS:,} entries in all: send fewer data at once"
            )
        return [_item(datum, index) for index, datum in enumerate(self.message.data)]


def _check_parts(body: memoryview) -> None:
    """Count the messages within the body, down to the chunks and tensors of each datum.

    An empty one is two bytes here and a hundred times as much in memory.

    Raises:
        RequestRejectedError: If they are too many.
        IndexError: If the body ends within one.
    """
    parts = 0
    open_parts = [(body, 0)]
    while open_parts:
        part, depth = open_parts.pop()
        for field in _fields(part):
            parts += 1
            if parts > _MOST_PARTS:
                raise RequestRejectedError(f"the request has more than {_MOST_PARTS:,} parts: send fewer data at once")
            if depth < 1 and field[0] == _DATA_FIELD:
                open_parts.append((field[1], depth + 1))


_DATA_FIELD = pb.ForwardBackwardRequest.DATA_FIELD_NUMBER
# Bytes of a field by its wire type, where they are fixed.
_FIXED_BYTES = {1: 8, 5: 4}


def _fields(part: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Number and content of each field of a protobuf message; the content of a number is empty."""
    place = 0
    while place < len(part):
        tag, place = _varint(part, place)
        kind = tag & 7
        if kind == 2:
            length, place = _varint(part, place)
            yield tag >> 3, part[place : place + length]
            place += length
        elif kind == 0:
            _, place = _varint(part, place)
            yield tag >> 3, part[:0]
        else:
            place += _FIXED_BYTES.get(kind, len(part))  # groups are of another age: the parser says no to them
            yield tag >> 3, part[:0]


def _varint(part: memoryview, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = part[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
        shift += 7
        if shift > 63:
            raise IndexError("a number of more than ten bytes")


def _item(datum: Any, index: int) -> TrainItem:
    chunks: list[NDArray[Any]] = []
    for chunk in datum.model_input:
        if chunk.WhichOneof("chunk") != "encoded_text":
            raise RequestRejectedError(f"datum {index} has an image or audio chunk; this engine trains on text")
        chunks.append(_array(chunk.encoded_text.tokens, np.int32, f"datum {index}: its tokens"))
    tokens = np.concatenate(chunks).astype(np.int64) if chunks else np.zeros(0, np.int64)
    return TrainItem(tokens, {name: _tensor(t, f"datum {index}: {name}") for name, t in datum.loss_fn_inputs.items()})


def _array(content: bytes, dtype: type[Any], where: str) -> NDArray[Any]:
    size = np.dtype(dtype).itemsize
    if len(content) % size:
        raise RequestRejectedError(f"{where}: {len(content)} bytes are no whole number of {size}-byte values")
    return np.frombuffer(content, dtype=dtype)


def _cells(message: Any) -> int:
    """Entries of a tensor once it is dense; a dense one has brought them all."""
    return math.prod(abs(size) for size in message.shape) if message.WhichOneof("encoding") == "sparse_csr" else 0


def _tensor(message: Any, where: str) -> NDArray[Any]:
    dtype = _DTYPES.get(message.dtype)
    if dtype is None:
        raise RequestRejectedError(f"{where} has an unknown data type")
    shape = tuple(message.shape)
    if message.WhichOneof("encoding") == "sparse_csr":
        csr = message.sparse_csr
        layout = SparseLayout(
            _array(csr.crow_indices, np.int64, where),
            _array(csr.col_indices, np.int64, where),
            sparse_shape(shape, where),
        )
        return layout.dense(_array(csr.values, dtype, where), 0, where)
    flat = _array(message.dense, dtype, where)
    if not shape:
        return flat
    if any(size < 0 for size in shape) or math.prod(shape) != flat.size:
        raise RequestRejectedError(f"{where}: its bytes do not fit its shape {list(shape)}")
    return flat.reshape(shape)


def sparse_shape(shape: Sequence[int], where: str) -> tuple[int, int]:
    """The shape of a sparse tensor, if it can be made dense.

    Raises:
        RequestRejectedError: If not.
    """
    if len(shape) != 2 or min(shape) < 0 or math.prod(shape) > MOST_CELLS:
        raise RequestRejectedError(
            f"{where}: a sparse tensor has a shape of two sizes and at most {MOST_CELLS:,} entries, not {list(shape)}"
        )
    return shape[0], shape[1]


@dataclass(frozen=True, slots=True)
class SparseLayout:
    """Which entries of a matrix a sparse tensor lists: compressed rows [rows + 1], columns [listed] and the shape."""

    rows: IntArray
    columns: IntArray
    shape: tuple[int, int]

    def dense(self, values: NDArray[Any], fill: float, where: str) -> NDArray[Any]:
        """The whole matrix, ``fill`` where nothing is listed.

        Raises:
            RequestRejectedError: If the indices do not belong to the shape and the values.
        """
        height, width = self.shape
        rows = self.rows
        fits = (
            len(rows) == height + 1
            and rows[0] == 0
            and rows[-1] == len(self.columns) == len(values)
            and bool((np.diff(rows) >= 0).all())
            and bool(((self.columns >= 0) & (self.columns < width)).all())
        )
        if not fits:
            raise RequestRejectedError(f"{where}: its sparse indices do not fit its shape {list(self.shape)}")
        dense = np.full(self.shape, fill, dtype=values.dtype)
        dense[self.places()] = values
        return dense

    def places(self) -> tuple[IntArray, IntArray]:
        """Row and column of each listed entry."""
        return np.repeat(np.arange(self.shape[0]), np.diff(self.rows)), self.columns


def encode_loss_result(result: LossResult) -> Encoded:
    """Write a ``ForwardBackwardOutput``: one record per datum where shapes differ, else one for all."""
    message = pb.ForwardBackwardOutput()
    message.loss_fn_output_type = "ArrayRecord"
    for name, value in result.metrics.items():
        message.metrics[name] = value
    if result.outputs:
        record = message.loss_fn_outputs.add()
        record.num_datums = len(result.outputs)
        for name in result.outputs[0]:
            _write_batched(record.fields[name], [output[name] for output in result.outputs])
    return Encoded(message.SerializeToString(), types.ForwardBackwardOutput)


def _write_batched(message: Any, arrays: Sequence[NDArray[np.float32]]) -> None:
    flat = [np.ascontiguousarray(a, dtype=np.float32) for a in arrays]
    message.dtype = pb.DTYPE_FLOAT32
    message.data = b"".join(a.tobytes() for a in flat)
    message.offsets = np.cumsum([0, *(a.nbytes for a in flat)], dtype=np.int64).tobytes()
    message.trailing_shape.extend(flat[0].shape[1:])


def adam_settings(params: types.AdamParams) -> AdamSettings:
    """The SDK's AdamW parameters as ours."""
    return AdamSettings(
        learning_rate=params.learning_rate,
        beta1=params.beta1,
        beta2=params.beta2,
        eps=params.eps,
        weight_decay=params.weight_decay,
        grad_clip_norm=params.grad_clip_norm,
    )


def encode_sample_output(output: SampleOutput, layout: SparseLayout | None = None) -> Encoded:
    """Write a ``SampleResponse``; log-probabilities of targets are sparse where they were asked for so (``layout``)."""
    message = pb.SampleResponse()
    for continuation in output.continuations:
        _write_sequence(message.sequences.add(), continuation)
    if output.prompt_logprobs_T is not None:
        message.prompt_logprobs = output.prompt_logprobs_T.astype(np.float32).tobytes()
    if output.topk_prompt_tokens_TK is not None and output.topk_prompt_logprobs_TK is not None:
        _write_topk(message.topk_prompt_logprobs, output.topk_prompt_tokens_TK, output.topk_prompt_logprobs_TK)
    if output.target_prompt_logprobs_TK is not None:
        _write_target(message.target_prompt_logprobs, np.nan_to_num(output.target_prompt_logprobs_TK, nan=0.0), layout)
    if output.alt_tokens_TK is not None and output.alt_logprobs_TK is not None:
        _write_tensor(message.prompt_alt_tokens.tokens, output.alt_tokens_TK)
        _write_tensor(message.prompt_alt_tokens.logprobs, output.alt_logprobs_TK)
    return Encoded(message.SerializeToString(), types.SampleResponse)


def as_json(encoded: Encoded) -> dict[str, Any]:
    """A protobuf answer as the JSON of the SDK's type, for a client that reads no protobuf."""
    from tinker.proto.response_conv import deserialize_proto_response

    decoded: Any = deserialize_proto_response(encoded.payload, encoded.response)
    if isinstance(decoded, types.SampleResponse):
        return _sample_json(decoded)
    outputs = [{name: _tensor_json(tensor) for name, tensor in each.items()} for each in decoded.loss_fn_outputs]
    return {
        "loss_fn_output_type": decoded.loss_fn_output_type,
        "loss_fn_outputs": outputs,
        "metrics": {name: _finite(value) for name, value in decoded.metrics.items()},
    }


def _sample_json(decoded: types.SampleResponse) -> dict[str, Any]:
    sequences = [
        {
            "stop_reason": each.stop_reason,
            "tokens": each.tokens,
            "logprobs": each.logprobs,
            "topk_logprobs": each.topk_logprobs,
        }
        for each in decoded.sequences
    ]
    target, draws = decoded.target_prompt_logprobs, decoded.prompt_alt_tokens
    return {
        "type": "sample",
        "sequences": sequences,
        "prompt_logprobs": decoded.prompt_logprobs,
        "topk_prompt_logprobs": decoded.topk_prompt_logprobs,
        "target_prompt_logprobs": target and _tensor_json(target),
        "prompt_alt_tokens": draws and {"tokens": _tensor_json(draws.tokens), "logprobs": _tensor_json(draws.logprobs)},
    }


def _tensor_json(tensor: types.TensorData) -> dict[str, Any]:
    plain = {"data": [_finite(value) for value in tensor.data], "dtype": tensor.dtype, "shape": tensor.shape}
    if tensor.sparse_crow_indices is None:
        return plain
    return plain | {
        "sparse_crow_indices": tensor.sparse_crow_indices,
        "sparse_col_indices": tensor.sparse_col_indices,
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _write_sequence(message: Any, continuation: Continuation) -> None:
    message.stop_reason = pb.STOP_REASON_STOP if continuation.stop_reason == "stop" else pb.STOP_REASON_LENGTH
    message.tokens = continuation.tokens_T.astype(np.int32).tobytes()
    message.logprobs = continuation.logprobs_T.astype(np.float32).tobytes()
    if continuation.topk_tokens_TK is not None and continuation.topk_logprobs_TK is not None:
        _write_topk(message.topk_sampled_logprobs, continuation.topk_tokens_TK, continuation.topk_logprobs_TK)


def _write_topk(message: Any, tokens_TK: NDArray[Any], logprobs_TK: NDArray[Any]) -> None:
    missing = np.isnan(logprobs_TK)
    message.length, message.k = tokens_TK.shape
    message.token_ids = np.where(missing, 0, tokens_TK).astype(np.int32).tobytes()
    message.logprobs = np.where(missing, _MASK_LOGPROB, logprobs_TK).astype(np.float32).tobytes()


def _write_target(message: Any, array: NDArray[np.float32], layout: SparseLayout | None) -> None:
    if layout is None:
        _write_tensor(message, array)
        return
    message.dtype = pb.DTYPE_FLOAT32
    message.shape.extend(layout.shape)
    message.sparse_csr.crow_indices = layout.rows.tobytes()
    message.sparse_csr.col_indices = layout.columns.tobytes()
    message.sparse_csr.values = array[layout.places()].astype(np.float32).tobytes()


def _write_tensor(message: Any, array: NDArray[Any]) -> None:
    floating = array.dtype.kind == "f"
    message.dtype = pb.DTYPE_FLOAT32 if floating else pb.DTYPE_INT64
    message.shape.extend(array.shape)
    message.dense = array.astype(np.float32 if floating else np.int64).tobytes()
