"""The singular basis of one weight, and where it came from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from gsr_kernels.checks import check_choice, is_integer
from gsr_kernels.linalg import randomized_svd, svd

# dtypes that can be decomposed, in float32 or better
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

Precision = Literal["fp16", "bf16", "fp32", "fp64"]
# how U and Vh are stored, by the name of a precision
STORAGE: dict[Precision, torch.dtype] = {
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp32": torch.float32,
    "fp64": torch.float64,
}

# asked for elsewhere, and why they are not among them
REFUSED = {
    "bf16x2": "two bf16 planes double the products and the memory; fp32 goes to cuBLAS",
    "tf32": "it has the 11 bits of fp16 in twice the memory; take fp16",
}


@dataclass(frozen=True, eq=False)
class SpectralBasis:
    """Thin SVD ``W = U diag(S) Vh`` of a weight ``W [.., d1, d2]``, taken before a task (paper, algorithm 1).

    Shapes: ``U [.., d1, k]``, ``S [.., k]`` descending, ``Vh [.., k, d2]``; leading dimensions are batches (experts,
    heads). With ``head_dim`` 0 or 1 the last of them holds the heads that the weight's rows or columns were split
    into: the weight's own shape is then ``weight_shape``. ``randomized`` says that a sketch found it.

    Raises TypeError for what is no floating-point tensor, ValueError where the shapes do not fit together.
    """

    U: Tensor
    S: Tensor
    Vh: Tensor
    fingerprint: str | None = None
    head_dim: int | None = None
    randomized: bool = False

    def __post_init__(self) -> None:
        for factor in (self.U, self.S, self.Vh):
            if not isinstance(factor, Tensor) or not factor.is_floating_point():
                got = factor.dtype if isinstance(factor, Tensor) else type(factor).__name__
                raise TypeError(f"SpectralBasis needs U, S and Vh as floating-point tensors, got {got}")
        batch, k = self.S.shape[:-1], self.S.shape[-1] if self.S.ndim else 0
        fits = self.U.ndim >= 2 and self.U.shape[:-2] == batch and self.U.shape[-1] == k
        fits = fits and self.Vh.ndim >= 2 and self.Vh.shape[:-2] == batch and self.Vh.shape[-2] == k
        if not fits or k < 1 or k > min(self.U.shape[-2], self.Vh.shape[-1]):
            raise ValueError(
                "SpectralBasis needs U [.., d1, k], S [.., k], Vh [.., k, d2] with 1 <= k <= min(d1, d2), "
                f"got U {_shape(self.U)}, S {_shape(self.S)}, Vh {_shape(self.Vh)}"
            )
        if self.head_dim not in (None, 0, 1) or (self.head_dim is not None and not batch):
            raise ValueError(f"head_dim must be None, or 0 or 1 for a batched basis, got {self.head_dim}")

    @classmethod
    def of(
        cls,
        weight: Tensor,
        rank: int | None = None,
        heads: int | tuple[int, int] | None = None,
        precision: Precision | None = None,
        randomized: bool = False,
    ) -> SpectralBasis:
        """Decompose ``weight [.., d1, d2]`` in float32 or better and keep its ``rank`` largest directions.

        Args:
            weight: any float dtype; float64 gives a float64 basis, anything else a float32 S.
            rank: 1 <= rank <= min(d1, d2); all of them by default.
            heads: h splits the rows into h heads, ``(h, 1)`` the columns (an output projection); each head then has a
                basis of its own. The whole matrix by default, as in the paper.
            precision: how U and Vh are kept: "fp32", "fp16" or "bf16". By default float32 on a CPU and 16-bit on a GPU.
            randomized: by ``linalg.randomized_svd``, which for a small rank is faster and slightly less than the best.

        Raises:
            TypeError: weight is not a real floating-point matrix.
            ValueError: rank, heads or precision out of range; randomized without a rank; a NaN or Inf in weight.
        """
        if not isinstance(weight, Tensor) or weight.dtype not in DTYPES or weight.ndim < 2 or not weight.numel():
            got = f"{weight.dtype} {_shape(weight)}" if isinstance(weight, Tensor) else type(weight).__name__
            raise TypeError(f"weight must be a real, non-empty matrix [.., d1, d2] of 16 bits or more, got {got}")
        if not weight.isfinite().all():
            raise ValueError("weight holds NaN or Inf: it has no singular basis; restore it from a checkpoint")
        matrix, head_dim = split_heads(weight.detach(), heads)
        most = min(matrix.shape[-2:])
        if rank is not None and not (is_integer(rank) and 1 <= rank <= most):
            raise ValueError(f"rank must lie in [1, {most}] for a weight {_shape(matrix)}, got {rank}")

        wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
        if randomized and rank is None:
            raise ValueError("randomized needs a rank: a whole basis is decomposed exactly")
        try:
            U, S, Vh = randomized_svd(matrix.to(wide), rank)[:3] if randomized and rank else svd(matrix.to(wide))
        except torch.linalg.LinAlgError as error:
            raise ValueError(f"the weight {_shape(weight)} could not be decomposed: {error}") from error
        storage = storage_dtype(precision, wide, weight.device)
        U, S, Vh = U[..., :rank].to(storage), S[..., :rank], Vh[..., :rank, :].to(storage)
        return cls(U.contiguous(), S.contiguous(), Vh.contiguous(), fingerprint(weight), head_dim, randomized)

    @property
    def rank(self) -> int:
        """Return k, the number of directions kept of each matrix."""
        return self.S.shape[-1]

    @property
    def precision(self) -> Precision:
        """Return the name of the dtype that U and Vh are kept in; ValueError where it has none."""
        for name, dtype in STORAGE.items():
            if dtype == self.U.dtype:
                return name
        raise ValueError(f"a basis is kept in one of {', '.join(STORAGE)}, not in {self.U.dtype}")

    @property
    def shape(self) -> torch.Size:
        """Return ``[.., d1, d2]`` of the matrices that were decomposed."""
        return torch.Size((*self.U.shape[:-1], self.Vh.shape[-1]))

    @property
    def dims(self) -> tuple[int, int, int]:
        """Return ``(d1, d2, k)`` of one matrix."""
        return self.U.shape[-2], self.Vh.shape[-1], self.S.shape[-1]

    @property
    def weight_shape(self) -> torch.Size:
        """Return the shape of the weight, heads joined."""
        if self.head_dim is None:
            return self.shape
        *batch, heads, d1, d2 = self.shape
        return torch.Size((*batch, heads * d1, d2) if self.head_dim == 0 else (*batch, d1, heads * d2))

    @property
    def full_rank(self) -> bool:
        """Return whether every direction is kept."""
        return self.rank == min(self.shape[-2:])

    @property
    def nbytes(self) -> int:
        """Return the bytes of U, S and Vh."""
        return sum(factor.numel() * factor.element_size() for factor in (self.U, self.S, self.Vh))

    def split(self, weight: Tensor) -> Tensor:
        """Return a weight or gradient ``weight_shape`` as the matrices ``shape`` of this basis: a view."""
        if self.head_dim is None:
            return weight
        return split_heads(weight, (self.shape[-3], self.head_dim))[0]

    def to(self, device: torch.device | str) -> SpectralBasis:
        """Return the basis on another device, itself where it is there already."""
        U, S, Vh = self.U.to(device), self.S.to(device), self.Vh.to(device)
        return self if U is self.U and S is self.S and Vh is self.Vh else replace(self, U=U, S=S, Vh=Vh)


def split_heads(matrix: Tensor, heads: int | tuple[int, int] | None) -> tuple[Tensor, int | None]:
    """Return ``[.., d1, d2]`` as ``[.., h, d1 / h, d2]`` (rows, 0) or ``[.., h, d1, d2 / h]`` (columns, 1), a view."""
    if heads is None:
        return matrix, None
    count, dim = heads if isinstance(heads, Sequence) and len(heads) == 2 else (heads, 0)
    if not is_integer(count) or dim not in (0, 1) or count < 1 or matrix.shape[dim - 2] % count:
        raise ValueError(f"heads must be h or (h, 0 or 1), h a divisor of that side of {_shape(matrix)}, got {heads}")
    parts = matrix.unflatten(dim - 2, (count, -1))
    return (parts if dim == 0 else parts.movedim(-2, -3)), int(dim)


def split_shape(shape: Sequence[int], heads: int | tuple[int, int] | None) -> tuple[torch.Size, int | None]:
    """Return ``split_heads`` of a shape alone, as of a whole DTensor."""
    matrices, head_dim = split_heads(torch.empty(shape, device="meta"), heads)
    return matrices.shape, head_dim


def fingerprint(weight: Tensor) -> str:
    """Return a weight's dtype, shape and a 64-bit sum over its bits, equal on every device.

    It tells whether a stored basis belongs to a weight; it is no defence against forgery.
    """
    return label(weight.dtype, weight.shape, bit_sum(weight, [0] * weight.ndim, weight.shape))


def label(dtype: torch.dtype, shape: Sequence[int], total: int) -> str:
    """Return a fingerprint from its parts."""
    return f"{str(dtype).removeprefix('torch.')}:{'x'.join(map(str, shape))}:{total % 2**64:016x}"


def bit_sum(part: Tensor, starts: Sequence[int], whole: Sequence[int]) -> int:
    """Return the sum, modulo 2^64, over the bits of a part that begins at ``starts`` of a tensor of shape ``whole``.

    The sums of all parts add up to that of the whole.
    """
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    words = part.detach().contiguous().view(integers[part.element_size()]).reshape(-1, part.shape[-1])
    rows = torch.zeros(1, dtype=torch.int64, device=part.device)
    for start, count, size in zip(starts[:-1], part.shape[:-1], whole[:-1]):
        rows = (rows.unsqueeze(-1) * size + torch.arange(start, start + count, device=part.device)).flatten()
    columns = torch.arange(starts[-1], starts[-1] + part.shape[-1], device=part.device)
    total = 0
    # chunks bound the int64 copies; each word is mixed with its index in the whole, so that order counts
    step = max(1, (1 << 22) // max(1, part.shape[-1]))
    for first in range(0, len(words), step):
        word = words[first : first + step].long()
        index = rows[first : first + step].unsqueeze(-1) * whole[-1] + columns
        mixed = (word + index * 0x9E3779B97F4A7C1) * 0x2545F4914F6CDD1D
        mixed = (mixed ^ (mixed >> 29)) * 0x1B03738712FAD5C9
        total += int((mixed ^ (mixed >> 32)).sum())
    return total % 2**64


def storage_dtype(precision: Precision | None, wide: torch.dtype, device: torch.device) -> torch.dtype:
    """Return the dtype of U and Vh of a basis decomposed in ``wide``; ValueError for an unknown precision."""
    if precision is None:
        return wide if wide == torch.float64 or device.type == "cpu" else torch.float16
    if isinstance(precision, str) and precision in REFUSED:
        raise ValueError(f"precision={precision!r} is not supported: {REFUSED[precision]}")
    check_choice("precision", precision, Precision)
    return STORAGE[precision]


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"
