"""The step of a whole model: built once from its bases, launched group by group."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import repeat
from operator import and_

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm import tqdm

from gsr_kernels.backends.triton import adamw_kernels, fields
from gsr_kernels.backends.triton.addresses import AddressTable
from gsr_kernels.backends.triton.configurations import device_properties, in_capture, on
from gsr_kernels.backends.triton.forms import Form, Group, Span, Update, check, form_of, kind, rows_of
from gsr_kernels.backends.triton.launches import Launch, Launches
from gsr_kernels.backends.triton.moments import Moments, Settings
from gsr_kernels.backends.triton.tables import pack, tile_table
from gsr_kernels.basis import SpectralBasis
from gsr_kernels.checks import check_rho
from gsr_kernels.reference import FLOOR

Sizes = npt.NDArray[np.int64]
# by the number of the field
Offsets = dict[int, Sizes]


class Plan(Launches):
    """``G' = U Uᵀ G V Vᵀ + U diag(δ) Vh`` for the gradients of a model, in a few launches a group of matrices.

    Args:
        bases: the bases of the weights, on one device, U and Vh contiguous fp16 or bf16 (fp32 in the interpreter). They
            are held as ``bases``; who clears that list holds them in the plan's place.
        dtypes: of each weight's gradient: bf16, fp16 or fp32.
        rho: see ``set_rho``; it lies in device memory.
        out_of_span: "drop", which needs a basis of full rank, or "keep", of each weight.
        workspace_mb: what the stored products of one group may take.
        updates: of each weight the dtypes that AdamW keeps it in, for ``update``; without them there is ``run``.

    Attributes:
        g, finite: of each weight the diagonal that the last step found, ``[.., k]`` float32, and whether it was finite,
            ``[..]`` bool. The next step writes over them.

    Raises:
        TypeError, ValueError: nothing to do, several devices, dtypes, layouts or a GPU that the kernels do not take;
            rho or out_of_span out of range.
        RuntimeError: under capture in a CUDA graph.
    """

    def __init__(
        self,
        bases: Sequence[SpectralBasis],
        dtypes: Sequence[torch.dtype],
        rho: float,
        out_of_span: Sequence[str],
        workspace_mb: float = 256,
        floor: float = FLOOR,
        updates: Sequence[Update] | None = None,
    ) -> None:
        if not bases or not len(bases) == len(dtypes) == len(out_of_span):
            raise ValueError(
                "a plan needs bases, and for each of them a gradient dtype and an out_of_span: "
                f"got {len(bases)} bases, {len(dtypes)} dtypes, {len(out_of_span)} out_of_span"
            )
        self.device = bases[0].U.device
        if in_capture(self.device):
            raise RuntimeError(
                "a CUDA graph cannot hold the first step, which plans and compiles: take one step before"
            )
        check_rho(rho)
        for one in zip(bases, dtypes, out_of_span):
            check(*one, self.device)
        self.bases = list(bases)
        self._floor = floor
        self._architecture, self._multiprocessors = device_properties(self.device)
        forms = [form_of(*one) for one in zip(bases, dtypes, out_of_span, updates or repeat(None))]
        self._kinds = [kind(basis) for basis in bases]
        # by the alignment of each group
        self._launches: dict[tuple[bool, ...], list[Launch]] = {}
        self._around: tuple[Launch, Launch] | None = None
        self.rho = torch.full((1,), float(rho), dtype=torch.float32, device=self.device)
        with on(self.device):
            self._lay_out(forms, workspace_mb)

    def set_rho(self, rho: float) -> None:
        """Change rho for the steps to come, those of a captured graph too. Raises ValueError outside [0, 1]."""
        self.rho.fill_(check_rho(rho))

    def run(
        self,
        gradients: Sequence[Tensor],
        outs: Sequence[Tensor] | None = None,
        bases: Sequence[SpectralBasis] | None = None,
    ) -> None:
        """Write every G' over its G, or to ``outs``; a matrix with a NaN or Inf in it comes back as it came.

        ``bases`` from here on take the place of those before, alike in ``kind``: a decomposition anew, or copies from
        host memory. After the first step with gradients whose rows are contiguous there is neither allocation nor
        synchronisation. Under capture in a CUDA graph the gradients must be those of the last eager step, and the plan
        belongs to their addresses from then on: see ``capture``.

        Raises ValueError where shapes, dtypes, devices or kinds are not those of the plan.
        """
        self._check(bases)
        with on(self.device):
            self._addresses.set(gradients, outs, bases)
            self._step(bases or self.bases)
            self._addresses.finish()

    def update(
        self,
        gradients: Sequence[Tensor],
        moments: Sequence[Moments],
        settings: Settings,
        bases: Sequence[SpectralBasis] | None = None,
    ) -> None:
        """Step by AdamW with every G', which is not written; a matrix with a NaN or Inf keeps weight and moments.

        The dtypes of ``moments`` are those of ``updates``. Else as ``run``.
        """
        self._check(bases)
        with on(self.device):
            self._addresses.set(gradients, [one.weight for one in moments], bases, moments=moments)
            prepare, finish = self._around or self._bind_around()
            prepare(settings.given, settings.scaling, self._coefficients)
            self._step(bases or self.bases)
            finish(self._coefficients, self._finite)
            self._addresses.finish()

    def warmup(self) -> None:
        """Compile and load the kernels of a step, without a tile to work on.

        They are those for gradients that lie as in the last step, and before the first one at addresses that are
        multiples of 16 bytes.
        """
        aligned = tuple(map(and_, self._even, self._addresses.aligned))
        distinct = {(group.form, even): None for group, even in zip(self._groups, aligned)}
        with on(self.device):
            for span in self._spans:
                self._bind_measure(replace(span, count=0), all(aligned[i] for i in span.groups))()
            for form, even in tqdm(distinct, desc="compiling", unit="form"):
                for launch in self._bind(Group(form, (0, 0), dict.fromkeys(self._walking, (0, 0))), even):
                    launch()

    def capture(self, gradients: Sequence[Tensor]) -> Callable[[Sequence[Tensor]], None]:
        """Return the step on these gradients as a CUDA graph: a function of the gradients that replays it.

        The plan then belongs to these addresses; replaying or running with others raises ValueError, as does a gradient
        whose rows are not contiguous. ``set_rho`` is seen by the next replay.
        """
        with on(self.device):
            self._addresses.set(gradients, capturing=True)
            self.warmup()
            torch.cuda.current_stream().synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self.run(gradients)

        def replay(gradients: Sequence[Tensor]) -> None:
            with on(self.device):
                self._addresses.set(gradients)
                graph.replay()

        return replay

    @property
    def captured(self) -> bool:
        """Return whether a CUDA graph holds the plan's addresses."""
        return self._addresses.frozen

    @property
    def forms(self) -> set[Form]:
        """The forms of its groups: two plans of the same ones need the same kernels."""
        return {group.form for group in self._groups}

    def _check(self, bases: Sequence[SpectralBasis] | None) -> None:
        if bases is not None and not self._addresses.holds(bases) and [kind(one) for one in bases] != self._kinds:
            raise ValueError(
                "bases of other shapes, dtypes, layouts or devices than the plan's: build a plan for these"
            )

    def _step(self, bases: Sequence[SpectralBasis]) -> None:
        aligned = tuple(map(and_, self._even, self._addresses.aligned))
        # what is launched for an alignment is the same at every step
        launches = self._launches.get(aligned)
        if launches is None:
            launches = [self._extremes.zero_] if self._spans else []
            launches += [self._bind_measure(span, all(aligned[i] for i in span.groups)) for span in self._spans]
            for group, even in zip(self._groups, aligned):
                launches += self._bind(group, even)
            self._launches[aligned] = launches
        for launch in launches:
            launch()

    def _lay_out(self, forms: Sequence[Form], workspace_mb: float) -> None:
        """Sort the matrices by form, give each its places, and write the tables."""
        order = sorted(range(len(forms)), key=lambda i: forms[i].order)
        rows: list[dict[int, int]] = []
        kinds: list[Form] = []
        start = {}
        for i in order:
            start[i] = len(rows)
            rows += rows_of(self.bases[i])
            kinds += [forms[i]] * (len(rows) - start[i])

        d1, d2, k = (np.array([row[field.value] for row in rows]) for field in (fields.D1, fields.D2, fields.K))
        standing = np.array([form.transposed for form in kinds])
        height = np.where(standing, d2, d1)
        offsets, taken = self._buffers(kinds, height, d1, d2, k)
        cuts = [form.configuration("first_product", self._architecture) for form in kinds]
        parts = -(-height // [cut.BM for cut in cuts])
        diagonal = np.cumsum(k) - k
        groups = list(pack(kinds, taken.tolist(), int(workspace_mb * 2**20)))

        workspace = max(int(taken[a:b].sum()) for a, b in groups)
        self._workspace = torch.empty(workspace, dtype=torch.uint8, device=self.device)
        floats = partial(torch.empty, dtype=torch.float32, device=self.device)
        self._partials = floats(max(int((parts * k)[a:b].sum()) for a, b in groups))
        # apart, so that both begin where vectors of 16 bytes do
        self._g = floats(int(k.sum()))
        self._delta = torch.empty_like(self._g)
        self._scales = floats(len(rows))
        self._finite = torch.empty(len(rows), dtype=torch.bool, device=self.device)
        self._extremes = floats(len(rows))
        self._coefficients = floats(len(rows), adamw_kernels.WIDTH.value)

        # the fields of every matrix, all but those of a step
        self._matrices = rows
        self._groups: list[Group] = []
        tiles: list[np.ndarray] = []
        count = 0
        for a, b in groups:
            place, sums = self._workspace.data_ptr(), 0
            for i in range(a, b):
                rows[i] |= {field: place + int(offset[i]) for field, offset in offsets.items()}
                rows[i] |= {fields.PARTIALS.value: sums, fields.PARTS.value: int(parts[i])}
                rows[i] |= {fields.DIAGONAL.value: int(diagonal[i])}
                place += int(taken[i])
                sums += int(parts[i] * k[i])
            spans = {}
            for kernel in self._walking:
                cut = kinds[a].configuration(kernel, self._architecture)
                written = (d1, d2) if kernel == "second_product" else (height, k)
                sides = zip(*(side[a:b].tolist() for side in written))
                tiles.append(tile_table(range(a, b), list(sides), cut.BM, cut.BN))
                spans[kernel] = (count, len(tiles[-1]))
                count += len(tiles[-1])
            self._groups.append(Group(kinds[a], (a, b - a), spans))
        self._tiles = torch.from_numpy(np.concatenate(tiles)).to(self.device)
        self._even = [group.form.even for group in self._groups]

        # sorted by form, the matrices of one gradient dtype that fp16 bounds are neighbours
        self._spans: list[Span] = []
        for dtype in {form.gradient for form in kinds if form.bounded}:
            bounded = [i for i, form in enumerate(kinds) if form.gradient == dtype and form.operand == torch.float16]
            within = [j for j, (a, _) in enumerate(groups) if a in bounded]
            self._spans.append(Span(dtype, bounded[0], len(bounded), tuple(within)))
        weights = [(basis, form, start[i]) for i, (basis, form) in enumerate(zip(self.bases, forms))]
        self._addresses = AddressTable(weights, rows, [group.matrices for group in self._groups], self.device)
        self.g, self.finite = [], []
        for i, basis in enumerate(self.bases):
            n, at = basis.S.numel(), int(diagonal[start[i]])
            self.g.append(self._g[at : at + n].view(basis.S.shape))
            self.finite.append(self._finite[start[i] : start[i] + n // basis.rank].view(basis.S.shape[:-1]))

    def _buffers(self, forms: Sequence[Form], height: Sizes, d1: Sizes, d2: Sizes, k: Sizes) -> tuple[Offsets, Sizes]:
        """Return where the buffers of each matrix begin in its part of the workspace, by field, and its bytes."""
        # a stored product is float32, its folded form as wide as the operand
        stored, width = np.array([form.stored for form in forms]), np.array([form.operand.itemsize for form in forms])
        product, folded = stored * padded(4 * height * k), stored * padded(height * k * width)
        return {fields.PRODUCT.value: 0 * product, fields.FOLDED.value: product}, product + folded


def padded(size: Sizes) -> Sizes:
    """Round up, so that addresses inside the workspace stay multiples of 256 bytes."""
    return -(-size // 256) * 256
