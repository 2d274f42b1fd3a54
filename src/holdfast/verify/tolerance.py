"""Across unlike hardware a claim is held against a calibrated bound: how far may an honest result be from one's own?

    distance    0 ........ alarm ............ guilty ...... CAP          overall, and of the worst row
    verdict       within    |   re-execute     |   guilty

Letters: B sequences, S tokens, D width; a row is one token of one sequence, [b, s, :].

    overall      || x - y ||  /  || y ||                                 x claimed, y one's own
    worst row    max over rows of  || x_r - y_r ||  /  max( || y_r ||, FLOOR * median of the || y_r || )

One replaced token among thousands hides in the overall distance, hence the rows. Rounding errors of a row come from all rows
that it attends to, so those of a tiny row are as large as its neighbours' and not as itself: hence the floor. It is made from
one's own rows, which a liar cannot choose, and from their median, which a few huge rows (an attention sink) do not move.
Equal bytes are at distance 0, NaN included. A distance that is NaN passes nothing.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from holdfast.digest import same_bytes

CAP = 1e-2
"""No overall bound is above this: along the exact loss gradient 1e-3 does nothing, 1e-2 costs 0.02 nats, 1e-1 costs 0.5."""

ROW_CAP = 0.3
"""No bound of a row is above this, so no row can be replaced; that only few are off by so much is up to the overall bound."""

FLOOR = 0.25
"""Rows below this fraction of a typical row are measured as if they had it."""


@dataclass(frozen=True, slots=True)
class Distance:
    """Two relative L2 distances: over the whole, and of the row that is furthest off. Thresholds are distances too."""

    overall: float
    worst_row: float

    def fits(self, limit: Distance) -> bool:
        """Whether both are at most those of `limit`; NaN fits nothing."""
        return self.overall <= limit.overall and self.worst_row <= limit.worst_row

    def times(self, factor: float) -> Distance:
        return Distance(self.overall * factor, self.worst_row * factor)

    @staticmethod
    def largest(several: Iterable[Distance]) -> Distance:
        """The greatest of each measure by itself. NaN where there is one."""
        pairs = [(one.overall, one.worst_row) for one in several]
        return Distance(*(math.nan if any(map(math.isnan, column)) else max(column) for column in zip(*pairs, strict=True)))


EQUAL = Distance(0.0, 0.0)
UNLIKE = Distance(math.inf, math.inf)
"""What differs in shape, dtype, name or number is no rounding error."""


class Agreement(enum.StrEnum):
    """What a distance says of a claim. `ALARM` proves nothing: the referee re-executes, and holds both accounts against it."""

    WITHIN = "within"
    ALARM = "alarm"
    GUILTY = "guilty"


@dataclass(frozen=True, slots=True)
class Bound:
    """Up to `alarm` a claim is accepted, beyond `guilty` nothing honest can explain it. Raises ValueError out of order."""

    alarm: Distance
    guilty: Distance

    def __post_init__(self) -> None:
        overall = 0 < self.alarm.overall < self.guilty.overall <= CAP
        if not (overall and 0 < self.alarm.worst_row < self.guilty.worst_row <= ROW_CAP):
            caps = f"{CAP:g} overall and {ROW_CAP:g} for a row"
            raise ValueError(f"needed is 0 < alarm < guilty, at most {caps}; got alarm {self.alarm}, guilty {self.guilty}")


def verdict(distance: Distance, bound: Bound) -> Agreement:
    """Raises nothing: whatever is not within a limit is beyond it.

    >>> bound = Bound(Distance(1e-6, 1e-5), Distance(3e-6, 3e-5))
    >>> [str(verdict(Distance(d, 0.0), bound)) for d in (1e-7, 2e-6, 1e-5, float("nan"))]
    ['within', 'alarm', 'guilty', 'guilty']
    """
    if distance.fits(bound.alarm):
        return Agreement.WITHIN
    return Agreement.ALARM if distance.fits(bound.guilty) else Agreement.GUILTY


def distance(claimed: Tensor, own: Tensor) -> Distance:
    """Of hidden states or input gradients [B, S, D], in fp64 on the device of `own`: a row is what the last index runs over.

    >>> distance(torch.tensor([[3.0, 4.0], [0.0, 5.5]]), torch.tensor([[3.0, 4.0], [0.0, 5.0]]))
    Distance(overall=0.07071067811865475, worst_row=0.1)
    """
    if claimed.shape != own.shape or claimed.dtype != own.dtype:
        return UNLIKE
    if same_bytes(claimed, own):
        return EQUAL
    mine = _rows(own)
    return _of_rows(_rows(claimed.to(own.device)) - mine, mine)


def distance_of_norms(claimed: Sequence[float], own: Sequence[float], dtype: torch.dtype) -> Distance:
    """Of the gradient norms in two headers: over the vector of norms, and of the worst parameter (a row is a parameter).

    Norms are floats of the gradient's `dtype`, so one unit in the last place says nothing: 0.8 % in bf16, and it would move the
    clip scale by no more. It is not counted.
    """
    if len(claimed) != len(own):
        return UNLIKE
    ours, theirs = (torch.tensor(norms, dtype=torch.float64).unsqueeze(1) for norms in (own, claimed))
    if same_bytes(ours, theirs):
        return EQUAL
    errors = ((theirs - ours).abs() - units(ours, dtype)).clamp(min=0)
    return _of_rows(errors, ours)


def distance_of_gradients(errors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Distance:
    """Of weight gradients by name, from their elementwise `errors`; a name without errors is equal.

    A row is what belongs to the first index of a matrix, or a whole vector. Rows have unlike lengths, so their root mean
    squares are compared, and the floor is that of all parameters together: the gradient of a key's bias, which is nothing but
    rounding errors, accuses nobody.
    """
    count = sum(tensor.numel() for tensor in own.values())
    total = math.sqrt(sum(_square(tensor) for tensor in own.values()))
    error = math.sqrt(sum(_square(tensor) for tensor in errors.values()))
    worst = [_worst_row(errors[name], own[name], FLOOR * total / math.sqrt(max(1, count))) for name in errors]
    return Distance(_ratio(error, total), math.nan if any(map(math.isnan, worst)) else max(worst, default=0.0))


def units(numbers: Tensor, dtype: torch.dtype) -> Tensor:
    """One unit in the last place of each of `numbers` if it were of `dtype`, in fp64; that of the least normal one below it."""
    facts = torch.finfo(dtype)
    _, exponent = torch.frexp(numbers.double().abs().clamp(min=facts.tiny))
    return facts.eps * torch.exp2((exponent - 1).double())


def relative(claimed: Mapping[str, Tensor], own: Mapping[str, Tensor], names: Iterable[str]) -> float:
    """Relative L2 over the tensors of these names together; NaN where a number is not finite and the bytes differ."""
    error, total = 0.0, 0.0
    for name in names:
        total += _square(own[name])
        if not same_bytes(claimed[name], own[name]):
            error += _square(claimed[name].to(own[name].device).double() - own[name].double())
    return _ratio(math.sqrt(error), math.sqrt(total)) if error else 0.0


def _worst_row(errors: Tensor, sizes: Tensor, floor: float) -> float:
    if errors.numel() == 0:
        return 0.0
    here = errors.to(sizes.device)
    off, size = (tensor.double().reshape(len(tensor) if tensor.ndim > 1 else 1, -1) for tensor in (here, sizes))
    length = math.sqrt(size.shape[1])
    sizes_of_rows = (torch.linalg.vector_norm(size, dim=1) / length).clamp(min=floor)
    return _greatest(torch.linalg.vector_norm(off, dim=1) / length, sizes_of_rows)


def _rows(tensor: Tensor) -> Tensor:
    return tensor.detach().double().reshape(-1, tensor.shape[-1] if tensor.ndim else 1)


def _of_rows(errors: Tensor, own: Tensor) -> Distance:
    sizes, lengths = (torch.linalg.vector_norm(each, dim=1) for each in (own, errors))
    overall = _ratio(torch.linalg.vector_norm(lengths).item(), torch.linalg.vector_norm(sizes).item())
    return Distance(overall, _greatest(lengths, sizes.clamp(min=FLOOR * sizes.median().item())))


def _greatest(errors: Tensor, sizes: Tensor) -> float:
    """The greatest ratio: 0 for 0/0, inf for x/0; NaN if any number was not finite, for torch's max keeps NaN."""
    ratios = torch.where(errors == 0, torch.zeros_like(errors), errors / sizes)
    return ratios.max().item()


def _square(tensor: Tensor) -> float:
    length = float(torch.linalg.vector_norm(tensor.detach().double()).item())
    return length * length  # not a power: that raises where it leaves the numbers


def _ratio(error: float, size: float) -> float:
    if error == 0:
        return 0.0
    if not math.isfinite(size):  # beside what has left the numbers, everything would be small
        return math.nan
    return error / size if size != 0 else (math.nan if math.isnan(error) else math.inf)
