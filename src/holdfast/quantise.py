"""Tensors between two stages may travel in fewer bits: what is claimed, signed, sent, checked and kept is the packed tensor.

    stage i computes  --pack-->  a_i as it is claimed  --unpack-->  stage i+1 computes           gradients likewise

    wire dtype    packed                    a number becomes
    the model's   [B, S, D], the same       itself
    float32       [B, S, D]                 itself (of a bfloat16 model)
    bfloat16      [B, S, D]                 the nearest bfloat16, ties to even
    int8          [B, S, D + 4]             the nearest of m * c / 127, c = -127 ... 127

A row is one token of one sequence, m the greatest magnitude in it. In int8 the D codes c of a row are followed by the four
bytes of its m, a little-endian float32. All is done element by element in correctly rounded operations, so that equal numbers
give equal bytes on every device; and what was unpacked is packed into the same bytes again.

No number raises an error. NaN stays NaN, in the packed tensor always the same one; infinity stays infinity. In int8 the finite
numbers of a row beside them become 0, since such a row has no greatest magnitude (m is infinity then); the code -128 is NaN; a
row of zeros has m = 0; and -0.0 becomes 0.0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

WIRE_DTYPES: Mapping[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}

_LARGEST = 127
_NAN = -128
_SCALE_BYTES = 4


def pack(values: Tensor, wire: torch.dtype) -> Tensor:
    """Pack hidden states or input gradients [B, S, D], float32 or bfloat16, for the wire: contiguous, on the same device.

    Gives [B, S, D + 4] of int8 or [B, S, D] of another `wire` dtype; `values` itself where that is its dtype.

    >>> pack(torch.tensor([[1.0, -0.5, 0.0]]), torch.int8)[:, :3]
    tensor([[127, -64,   0]], dtype=torch.int8)
    """
    if values.dtype == wire:
        return values
    values = values.detach().contiguous()
    if wire == torch.int8:
        return _to_codes(values.to(torch.float32))
    return values.to(wire).masked_fill_(values.isnan(), torch.nan)  # some kernels give NaN other bits than others


def unpack(packed: Tensor, dtype: torch.dtype) -> Tensor:
    """The numbers [B, S, D] that a packed tensor stands for, in the model's `dtype`; any bytes stand for some.

    A fresh contiguous tensor, or `packed` itself where it has that dtype. The last dimension of int8 must be 4 at least.

    >>> unpack(pack(torch.tensor([[3.0, -1.5, 0.0]]), torch.int8), torch.float32)
    tensor([[ 3.0000, -1.5118,  0.0000]])
    """
    if packed.dtype == dtype:
        return packed
    if packed.dtype == torch.int8:
        return _from_codes(packed).to(dtype)
    return packed.contiguous().to(dtype)


def packed_shape(shape: tuple[int, int, int], wire: torch.dtype) -> tuple[int, int, int]:
    """The shape on the wire of a tensor [B, S, D].

    >>> packed_shape((2, 3, 64), torch.int8)
    (2, 3, 68)
    """
    b, s, d = shape
    return (b, s, d + _SCALE_BYTES) if wire == torch.int8 else shape


@dataclass(frozen=True, slots=True)
class Packing:
    """How the tensors of a model that computes in `model` travel: as `wire`."""

    model: torch.dtype
    wire: torch.dtype

    @property
    def changes(self) -> bool:
        """Whether anything is packed at all."""
        return self.model != self.wire

    def pack(self, values: Tensor) -> Tensor:
        """See `pack`."""
        return pack(values, self.wire) if self.changes else values

    def unpack(self, packed: Tensor) -> Tensor:
        """See `unpack`."""
        return unpack(packed, self.model) if self.changes else packed

    def through(self, change: Callable[[Tensor], Tensor], packed: Tensor) -> Tensor:
        """The packed tensor that stands for the changed numbers of `packed`."""
        return self.pack(change(self.unpack(packed)))

    def shape(self, values: tuple[int, int, int]) -> tuple[int, int, int]:
        """The shape on the wire of a tensor [B, S, D]."""
        return packed_shape(values, self.wire)


AS_COMPUTED = Packing(torch.float32, torch.float32)
"""Nothing is packed, whatever the dtype."""


def packing_of(model: torch.dtype, wire: str | None) -> Packing:
    """The packing for the setting `wire`, a name in WIRE_DTYPES or None for the model's own dtype."""
    return Packing(model, model if wire is None else WIRE_DTYPES[wire])


def _to_codes(values: Tensor) -> Tensor:
    """Float32 [B, S, D] to int8 [B, S, D + 4]."""
    greatest = values.abs().amax(-1, keepdim=True).contiguous()
    greatest = greatest.masked_fill(~greatest.isfinite(), torch.inf)
    codes = (values / greatest.masked_fill(greatest == 0, 1.0) * _LARGEST).round()  # beside infinity, finite numbers are 0
    codes = torch.where(values.isinf(), values.sign() * _LARGEST, codes).masked_fill(values.isnan(), _NAN)
    return torch.cat((codes.to(torch.int8), greatest.view(torch.int8)), dim=-1)


def _from_codes(packed: Tensor) -> Tensor:
    """Int8 [B, S, D + 4] to float32 [B, S, D]."""
    codes = packed[..., :-_SCALE_BYTES]
    # A copy, even where there is one row only: float32 cannot be read at any offset.
    greatest = packed[..., -_SCALE_BYTES:].clone(memory_format=torch.contiguous_format).view(torch.float32)
    # c / 127 comes first: it is exactly 1 for the greatest number, which is then kept to the bit.
    values = codes.to(torch.float32, memory_format=torch.contiguous_format) / _LARGEST * greatest
    return values.masked_fill(codes == 0, 0.0).masked_fill(codes == _NAN, torch.nan)
