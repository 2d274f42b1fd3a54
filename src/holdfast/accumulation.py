"""Matrix products that are summed in another way than the library's kernels do it: in a wider type, or in several parts.

    WideSums       round( f(wide(x), wide(w)) )               linear, matmul, layer norm, attention ... forward and backward
    SplitSums      sum over parts k of  x[:, k] @ w[k, :]     linear layers, forward and backward; at least fp32 inside

Both are what other machines do: accumulators of another width, an inner dimension that is divided among cores. They work as
modes of torch's functions, so any model computes with them as long as the mode is open; autograd records what they call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

PARTS = 4
"""Parts of the inner dimension of a split sum."""

_SUMMING: frozenset[Callable[..., Any]] = frozenset(
    {
        functional.linear,
        functional.layer_norm,
        functional.scaled_dot_product_attention,
        functional.softmax,
        torch.softmax,
        torch.addmm,
        torch.baddbmm,
        torch.bmm,
        torch.matmul,
        torch.mm,
        Tensor.__matmul__,
        Tensor.addmm,
        Tensor.baddbmm,
        Tensor.bmm,
        Tensor.matmul,
        Tensor.mm,
        Tensor.softmax,
    }
)


class WideSums(TorchFunctionMode):
    """Functions that sum over `narrow` numbers do so over `wide` ones; their result is rounded back once."""

    def __init__(self, narrow: torch.dtype, wide: torch.dtype) -> None:
        super().__init__()
        self._narrow = narrow
        self._wide = wide

    def __torch_function__(
        self, function: Any, types: Any, given: Sequence[Any] = (), named: Mapping[str, Any] | None = None
    ) -> Any:
        named = named or {}
        if function not in _SUMMING or not any(self._is_narrow(value) for value in (*given, *named.values())):
            return function(*given, **named)
        widened = {name: self._widen(value) for name, value in named.items()}
        result = function(*map(self._widen, given), **widened)
        return result if named.get("dtype") is not None else result.to(self._narrow)

    def _is_narrow(self, value: Any) -> bool:
        return isinstance(value, Tensor) and value.dtype == self._narrow

    def _widen(self, value: Any) -> Any:
        return value.to(self._wide) if self._is_narrow(value) else value


class SplitSums(TorchFunctionMode):
    """Linear layers sum over their inner dimension in PARTS parts, in both passes."""

    def __torch_function__(
        self, function: Any, types: Any, given: Sequence[Any] = (), named: Mapping[str, Any] | None = None
    ) -> Any:
        named = named or {}
        if function is functional.linear:
            return _linear(*given, **named)
        if function is torch.addmm and not named and len(given) == 3:
            return _SplitProduct.apply(given[1], given[2], given[0])  # type: ignore[no-untyped-call]
        return function(*given, **named)


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    rows: Tensor = _SplitProduct.apply(input.reshape(-1, input.shape[-1]), weight.t(), bias)  # type: ignore[no-untyped-call]
    return rows.view(*input.shape[:-1], weight.shape[0])


class _SplitProduct(torch.autograd.Function):
    """left @ right + bias, rounded once at the end."""

    @staticmethod
    def forward(context: Any, left: Tensor, right: Tensor, bias: Tensor | None) -> Tensor:
        context.save_for_backward(left, right)
        context.biased = bias is not None
        return _in_parts(left, right, bias)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        left, right = context.saved_tensors
        of_bias = gradient.sum(dim=0) if context.biased else None
        return _in_parts(gradient, right.t()), _in_parts(left.t(), gradient), of_bias


def _in_parts(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """[m, k] by [k, n]: partial products of parts of k, added up in order, in at least fp32."""
    inside = torch.promote_types(left.dtype, torch.float32)
    pairs = zip(left.to(inside).chunk(PARTS, dim=1), right.to(inside).chunk(PARTS, dim=0), strict=True)
    products = [a @ b for a, b in pairs]
    total = products[0]
    for product in products[1:]:
        total = total + product
    return (total if bias is None else total + bias.to(inside)).to(left.dtype)
