"""Flat shards: any intervals of a weight's elements give what one process gives; FSDP1 by that rule."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gsr_kernels import SpectralBasis
from gsr_kernels.basis import fingerprint
from gsr_kernels.distributed import shard
from gsr_kernels.distributed.flat import FlatLayout
from gsr_kernels.distributed.layout import slices
from gsr_kernels.distributed.schemes import choose_scheme, factor_shapes
from gsr_kernels.io.bases_file import FACTORS
from gsr_kernels.methods import GSR
from gsr_kernels.reference import rescale
from python_tests.distributed import fsdp1
from python_tests.distributed.ranks import run


class Mesh:
    """Stands in for a DeviceMesh of so many ranks."""

    def __init__(self, ranks):
        self.ranks = ranks

    def size(self, dimension):
        return self.ranks


@st.composite
def intervals(draw):
    """A weight's shape, the parts of its columns, each rank's interval, in any order, and a number of directions."""
    parts = draw(st.integers(1, 3))
    shape = torch.Size((draw(st.integers(1, 8)), parts * draw(st.integers(1, 8 // parts))))
    cuts = draw(st.lists(st.integers(0, shape.numel()), min_size=1, max_size=4))
    bounds = sorted([*cuts, *(shape.numel() * part // parts for part in range(parts + 1))])
    blocks = draw(st.permutations([(one,) for one in pairwise(bounds)]))
    return shape, parts, tuple(blocks), draw(st.none() | st.integers(1, min(shape)))


def layouts_of(shape, parts, blocks):
    """The layout of each rank."""
    layouts = [FlatLayout(shape, Mesh(len(blocks)), blocks=blocks, parts=parts) for _ in blocks]
    for index, layout in enumerate(layouts):
        vars(layout)["index"] = index
    return layouts


def in_order(W, parts):
    """The elements in the order of the intervals."""
    return W.view(len(W), parts, -1).movedim(1, 0).flatten()


@settings(max_examples=120, deadline=None)
@given(intervals(), st.sampled_from(["keep", "drop"]))
def test_any_intervals_agree_with_one_process(case, out_of_span):
    shape, parts, blocks, rank = case
    W, G = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    method, basis = GSR(rho=0.7, out_of_span=out_of_span), SpectralBasis.of(W, rank)
    ranks = []
    for index, layout in enumerate(layouts_of(shape, parts, blocks)):
        scheme = choose_scheme("w", method, layout, basis.rank, None, False)
        layouts = scheme.factors(factor_shapes(shape, basis.rank))
        factors = {name: getattr(basis, name)[slices(layouts[name].block(index))] for name in FACTORS}
        held = shard.as_shard(layout, factors, **shard.metadata(basis))
        part = in_order(G, parts)[slices(layout.block())]
        # a rank without elements has no factors either, and takes no part
        assert held.U.numel() == held.Vh.numel() == 0 or part.numel()
        if part.numel():
            ranks.append((scheme, scheme.operands(part, held)))
            assert held.U.shape[0] <= -(-part.numel() * parts // shape[1]) + 1 and held.Vh.shape[1] * parts == shape[1]
    # the all-reduce
    sums = sum(scheme.partial(operands)[0] for scheme, operands in ranks)
    square = basis.full_rank and shape[0] == shape[1]
    assert sums.shape == ((basis.rank,) if square or out_of_span == "keep" else (basis.rank, basis.rank))
    g = ranks[0][0].diagonal(sums, ranks[0][1])
    delta = rescale(g, basis.S, method.rho) - g
    found = torch.empty_like(G).flatten()
    for scheme, operands in ranks:
        found[slices(scheme.layout.block())] = scheme.shard(sums, (), operands, delta)
    expected = G.clone()
    method.transform([(expected, W, basis, {})])
    assert (ranks[0][0].layout.whole(found) - expected).norm() <= 1e-12 * G.norm()


@settings(max_examples=30, deadline=None)
@given(intervals())
def test_the_fingerprint_is_that_of_the_whole_weight(case):
    shape, parts, blocks, _ = case
    W, total = torch.randn(shape), 0
    for layout in layouts_of(shape, parts, blocks):
        for piece, starts in layout.pieces(in_order(W, parts)[slices(layout.block())]):
            total += shard.bit_sum(piece, starts, shape)
    assert shard.label(W.dtype, shape, total % 2**64) == fingerprint(W)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Of two ranks, then of three, which find the bases of the two."""
    folder = str(tmp_path_factory.mktemp("fsdp1"))
    two = run(
        2,
        (fsdp1.agreement,),
        (fsdp1.refusals,),
        (fsdp1.advice,),
        (fsdp1.lost,),
        (fsdp1.partly_used,),
        (fsdp1.found_again, folder),
        (fsdp1.found_again, folder),
    )
    return two, run(3, (fsdp1.agreement,), (fsdp1.found_again, folder))


def test_fsdp1_agrees_with_one_process(results):
    for ranks in results:
        for found in ranks["agreement"]:
            assert len(found) == 2 * len(fsdp1.SETTINGS) and max(far for far, _ in found.values()) <= 1e-12


def test_a_step_sums_a_diagonal_and_gathers_nothing(results):
    # of the three weights, with 6, 5 and 2 directions or half of them, in float64
    expected = {("keep",): 8 * 13, ("drop",): 8 * (36 + 25 + 4), ("drop", 0.5): 8 * (9 + 4 + 1)}
    for found in results[0]["agreement"]:
        for (_, *setting), (_, seen) in found.items():
            sent = expected.get(tuple(setting))
            assert sent is None or seen == [("allreduce_", sent)]


def test_bases_of_flat_shards_are_found_by_any_ranks(results):
    for ranks in results:
        for count, far, resuming in ranks["found_again"]:
            assert count == 0 and far <= 1e-12 and not resuming


def test_a_closure_and_a_layer_of_one_rank_alone_agree_with_one_process(results):
    for distances in results[0]["partly_used"]:
        assert len(distances) == 3 and max(distances) <= 1e-12


def test_what_drop_costs_is_said_once(results):
    first, second = results[0]["advice"]
    assert not second and len(first) == 1
    assert first[0].endswith('"drop" sums 520 bytes a step; out_of_span="keep" sums 104')


def test_a_parameter_that_the_optimizer_lost_is_missed(results):
    for message in results[0]["lost"]:
        assert message.startswith("RuntimeError: the optimizer's last step left out"), message


def test_what_fsdp1_does_not_support_is_refused(results):
    for own, method, recorded, unsharded in results[0]["refusals"]:
        assert own.startswith("TypeError: optimizer: GSRAdamW needs weights that are not flattened")
        assert (
            method.startswith("TypeError: method: PSP needs whole matrices") and "an interval of its elements" in method
        )
        assert recorded.startswith("ValueError: record_every measures whole gradients")
        assert unsharded.startswith("ValueError: model: FullyShardedDataParallel (FSDP1) with NO_SHARD")
