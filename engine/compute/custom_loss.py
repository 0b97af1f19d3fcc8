# pyright: basic
# Reason: an interpreter of untyped graphs over torch functions.
"""Server-side custom losses: a traced graph of plain data, run over an allow-list and nothing else.

The client traces its Python function with torch.fx and sends the nodes. Here each node's target is looked up in
tables of pure torch functions, tensor methods and attributes; a name that is not there is refused before anything
runs. No attribute of any Python object is reachable, nothing is imported by name, nothing is evaluated.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..interface import RequestRejectedError

MAX_NODES = 2_000
MAX_ELEMENTS = 1 << 26

_TORCH_NAMES = """abs absolute add amax amin arange argmax argmin atan ceil clamp clip concat cat cos cosh cummax
    cumprod cumsum deg2rad diff div divide dot einsum eq erf erfc exp exp2 expm1 flip floor full_like gather ge
    greater greater_equal gt isfinite isinf isnan le lerp less less_equal lgamma log log10 log1p log2 log_softmax
    logaddexp logaddexp2 logcumsumexp logical_and logical_not logical_or logical_xor logsumexp logit lt masked_select
    matmul max maximum mean median min minimum mul multiply nan_to_num nanmean nansum ne neg negative norm not_equal
    numel ones_like outer pow prod reciprocal relu reshape round rsqrt selu sigmoid sign sin sinh softmax sort sqrt
    square squeeze stack std std_mean sub subtract sum tan tanh topk transpose tril triu true_divide trunc unsqueeze
    var var_mean where xlogy zeros_like""".split()
_FUNCTIONAL_NAMES = """binary_cross_entropy binary_cross_entropy_with_logits celu elu gelu hardtanh huber_loss kl_div
    l1_loss leaky_relu log_softmax logsigmoid margin_ranking_loss mse_loss normalize relu sigmoid silu smooth_l1_loss
    softmax softmin softplus softsign tanh""".split()
_OPERATOR_NAMES = """abs add and_ eq floordiv ge getitem gt invert le lt matmul mod mul ne neg not_ or_ pos pow sub
    truediv xor""".split()
_MATH_NAMES = "ceil cos erf exp expm1 fabs floor isfinite isinf isnan log log10 log1p log2 sin sqrt tanh".split()
_METHOD_NAMES = """abs add all amax amin any argmax argmin clamp clamp_max clamp_min clip clone contiguous cos cummax
    cumprod cumsum detach diff dim div dot double eq exp exp2 expand expand_as expm1 flatten flip float floor gather
    ge gt index_select int isfinite isinf isnan le lerp log log10 log1p log2 log_softmax logaddexp logcumsumexp
    logical_and logical_not logical_or logsumexp lt masked_fill masked_select matmul max maximum mean median min
    minimum mul nan_to_num nanmean nansum narrow ne neg new_ones new_zeros norm numel outer permute pow prod
    reciprocal relu reshape roll round rsqrt select sigmoid sign sin size softmax sort sqrt square squeeze std sub
    sum tanh to topk transpose tril triu trunc type_as unsqueeze var view view_as where""".split()
_ATTRIBUTES = frozenset({"shape", "ndim", "T", "mT", "dtype", "device"})
_DTYPES = {"float32": torch.float32, "float64": torch.float64, "int64": torch.int64, "int32": torch.int32}
_DTYPES |= {"bool": torch.bool, "bfloat16": torch.bfloat16, "float16": torch.float16}


def _table() -> dict[str, Callable[..., Any]]:
    """Wire name -> function. The same function may be traced under several of torch's own names."""
    table: dict[str, Callable[..., Any]] = {"math.pow": math.pow}
    table |= {f"torch.{name}": getattr(torch, name) for name in _TORCH_NAMES}
    for name in _FUNCTIONAL_NAMES:
        table |= {f"{prefix}.{name}": getattr(F, name) for prefix in ("torch.nn.functional", "torch._C._nn")}
    table["torch._C._nn.log_sigmoid"] = F.logsigmoid
    table |= {
        f"torch.special.{name}": getattr(torch.special, name) for name in ("expit", "log1p", "logsumexp", "xlogy")
    }
    table |= {f"operator.{name}": getattr(operator, name) for name in _OPERATOR_NAMES}
    return table | {f"math.{name}": getattr(math, name) for name in _MATH_NAMES}


FUNCTIONS = _table()
METHODS = frozenset(_METHOD_NAMES)


@dataclass(frozen=True, slots=True)
class _Node:
    op: str
    name: str
    target: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class CustomLoss:
    """A checked graph: (logprobs, inputs...) -> (scalar loss, metrics named ``custom/<name>:sum`` or ``:mean``)."""

    name: str
    inputs: tuple[tuple[str, int], ...]
    nodes: tuple[_Node, ...]

    def check_inputs(self, loss_inputs: Mapping[str, NDArray[Any]], where: str) -> None:
        """Refuse a datum that lacks an input of the loss, or brings it in another rank.

        Raises:
            RequestRejectedError: Naming the datum and the key.
        """
        for position, (name, rank) in enumerate(self.inputs):
            key = "target_tokens" if position == 0 else name
            value = loss_inputs.get(key)
            if value is None:
                raise RequestRejectedError(f"{where}: custom loss {self.name!r} needs {key!r} in loss_fn_inputs")
            if value.ndim != rank:
                raise RequestRejectedError(
                    f"{where}: custom loss {self.name!r} declared {name} with rank {rank}, got rank {value.ndim}"
                )
            if not np.isfinite(value).all():
                raise RequestRejectedError(f"{where}: {key} holds nan or infinite values")

    def run(self, logprobs: Tensor, loss_inputs: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """The loss of one datum and its metrics. ``logprobs`` is [T] or [T, K]; the loss is a scalar.

        Raises:
            RequestRejectedError: If an operation fails on these values, or the result is not a scalar loss.
        """
        values: dict[str, Any] = {}
        supply = iter([logprobs, *(loss_inputs[name] for name, _ in self.inputs[1:])])
        for node in self.nodes:
            if node.op == "placeholder":
                values[node.name] = next(supply)
            elif node.op == "output":
                return self._result(_decode(node.args[0], values))
            else:
                values[node.name] = self._apply(node, values)
        raise RequestRejectedError(f"custom loss {self.name!r} has no output node")

    def _apply(self, node: _Node, values: Mapping[str, Any]) -> Any:
        args = [_decode(arg, values) for arg in node.args]
        kwargs = {key: _decode(arg, values) for key, arg in node.kwargs.items()}
        try:
            result = _call(node, args, kwargs)
        except (RuntimeError, TypeError, ValueError, IndexError, KeyError, ArithmeticError, AttributeError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise RequestRejectedError(f"custom loss {self.name!r}: {node.target} failed: {error}") from error
        if isinstance(result, Tensor) and result.numel() > MAX_ELEMENTS:
            raise RequestRejectedError(f"custom loss {self.name!r}: {node.target} makes {result.numel()} elements")
        return result

    def _result(self, output: Any) -> tuple[Tensor, dict[str, float]]:
        if not (isinstance(output, tuple | list) and len(output) == 2 and isinstance(output[1], dict)):
            raise RequestRejectedError(f"custom loss {self.name!r} must return (loss, metrics)")
        loss, metrics = output
        if not isinstance(loss, Tensor) or loss.ndim != 0:
            raise RequestRejectedError(f"custom loss {self.name!r} must return a scalar loss")
        return loss, {key: _number(value, key) for key, value in metrics.items()}


def compile_custom_loss(name: str, inputs: Sequence[tuple[str, int]], nodes: Sequence[Mapping[str, Any]]) -> CustomLoss:
    """Check a graph against the allow-list.

    Args:
        name: The loss's name, for messages.
        inputs: (name, rank) of each input in order, ``logprobs`` first.
        nodes: The SDK's ``CustomLossGraph.nodes`` as plain dictionaries: op, name, target, args, kwargs.

    Raises:
        RequestRejectedError: If an operation is not allowed, or the graph is malformed.
    """
    if not inputs or inputs[0][0] != "logprobs":
        raise RequestRejectedError(f"custom loss {name!r} must take logprobs first")
    if len(nodes) > MAX_NODES:
        raise RequestRejectedError(f"custom loss {name!r} has {len(nodes)} nodes; at most {MAX_NODES} are run")
    checked: list[_Node] = []
    seen: set[str] = set()
    for raw in nodes:
        node = _Node(raw["op"], raw["name"], raw["target"], tuple(raw.get("args", ())), dict(raw.get("kwargs", {})))
        _check_node(name, node, seen)
        seen.add(node.name)
        checked.append(node)
    placeholders = sum(node.op == "placeholder" for node in checked)
    if placeholders != len(inputs):
        raise RequestRejectedError(f"custom loss {name!r} declares {len(inputs)} inputs, its graph has {placeholders}")
    if not checked or checked[-1].op != "output":
        raise RequestRejectedError(f"custom loss {name!r} has no output node")
    return CustomLoss(name, tuple((str(key), int(rank)) for key, rank in inputs), tuple(checked))


def _check_node(name: str, node: _Node, seen: set[str]) -> None:
    allowed = {
        "placeholder": True,
        "output": len(node.args) == 1,
        "call_function": node.target in FUNCTIONS or _is_attribute(node),
        "call_method": node.target in METHODS,
    }.get(node.op, False)
    if not allowed:
        raise RequestRejectedError(
            f"custom loss {name!r}: {node.op} {node.target!r} is not among the allowed operations"
        )
    for reference in _references([*node.args, *node.kwargs.values()]):
        if reference not in seen:
            raise RequestRejectedError(f"custom loss {name!r}: node {node.name!r} reads {reference!r} before it exists")


def _is_attribute(node: _Node) -> bool:
    return node.target == "builtins.getattr" and len(node.args) == 2 and node.args[1] in _ATTRIBUTES


def _references(arguments: Sequence[Any]) -> list[str]:
    names: list[str] = []
    for argument in arguments:
        if isinstance(argument, list | tuple):
            names += _references(argument)
        elif isinstance(argument, Mapping):
            names += [argument["ref"]] if "ref" in argument else _references(list(argument.values()))
    return names


def _call(node: _Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
    if node.op == "call_method":
        if not isinstance(args[0], Tensor):
            raise TypeError(f"{node.target} is called on a {type(args[0]).__name__}, not on a tensor")
        return getattr(args[0], node.target)(*args[1:], **kwargs)
    if node.target == "builtins.getattr":
        if not isinstance(args[0], Tensor):
            raise TypeError("an attribute is read of something that is not a tensor")
        return getattr(args[0], args[1])
    if node.target.startswith(("operator.", "math.")) and node.target != "operator.getitem":
        args = [_plain(arg) for arg in args]
    if node.target == "operator.pow" and not any(isinstance(arg, Tensor) for arg in args):
        args = [float(arg) for arg in args]
    return FUNCTIONS[node.target](*args, **kwargs)


def _plain(value: Any) -> Any:
    """Numbers become floats, so that no integer power or product grows without bound; sequences are refused."""
    if isinstance(value, Tensor | bool):
        return value
    if isinstance(value, int | float):
        return float(value) if abs(value) > 2**31 else value
    raise TypeError(f"arithmetic on a {type(value).__name__}")


def _decode(argument: Any, values: Mapping[str, Any]) -> Any:
    """The SDK's argument encoding: JSON scalars stand for themselves, anything else is a one-key object."""
    if isinstance(argument, list | tuple):
        return [_decode(item, values) for item in argument]
    if not isinstance(argument, Mapping):
        return argument
    if len(argument) != 1:
        raise RequestRejectedError("a custom loss's argument is malformed: one key expected")
    kind, content = next(iter(argument.items()))
    return _decode_kind(kind, content, values)


def _decode_kind(kind: str, content: Any, values: Mapping[str, Any]) -> Any:
    if kind == "ref":
        return values[content]
    if kind == "tuple":
        return tuple(_decode(item, values) for item in content)
    if kind == "dict":
        return {key: _decode(item, values) for key, item in content.items()}
    if kind == "slice":
        return slice(*(_decode(item, values) for item in content))
    if kind == "dtype" and content in _DTYPES:
        return _DTYPES[content]
    if kind == "float":
        return float(content)
    constants = {"ellipsis": ..., "device": torch.device("cpu"), "layout": torch.strided}
    if kind in constants:
        return constants[kind]
    raise RequestRejectedError(f"a custom loss's argument of kind {kind!r} ({content!r}) is not supported")


def _number(value: Any, key: str) -> float:
    number = float(value.detach()) if isinstance(value, Tensor) and value.numel() == 1 else value
    if not isinstance(number, int | float):
        raise RequestRejectedError(f"custom loss metric {key!r} must be a scalar")
    return float(number)
