import torch
import triton
import triton.language as tl

from gsr_kernels.backends.triton.tiles import inverse, load_tile, load_transposed, power_of_two, store_tile


@triton.jit
def _copy(source, target, stride, row, column, rows, columns, TRANSPOSED: tl.constexpr):
    if TRANSPOSED:
        tile = load_transposed(source, stride, row, column, rows, columns, 16, 16)
    else:
        tile = load_tile(source, stride, row, column, rows, columns, 16, 16)
    store_tile(target, stride, row, column, rows, columns, tile, 16, 16)


@triton.jit
def _at(source_address, target_address, stride, row, rows, columns):
    source = source_address.to(tl.pointer_type(tl.float32))
    target = target_address.to(tl.pointer_type(tl.float32))
    store_tile(target, stride, row, 0, rows, columns, load_tile(source, stride, row, 0, rows, columns, 16, 16), 16, 16)


@triton.jit
def _powers(x, out, back, BITS: tl.constexpr):
    power = power_of_two(tl.load(x + tl.arange(0, 16)), BITS)
    tl.store(out + tl.arange(0, 16), power)
    tl.store(back + tl.arange(0, 16), inverse(power))


def test_tiles_are_cut_at_the_edges():
    source, target = torch.randn(40, 40), torch.full((40, 40), torch.nan)
    _copy[(1,)](source, target, 40, 16, 16, 21, 30, False)
    assert torch.equal(target[16:21, 16:30], source[16:21, 16:30])
    assert target.isfinite().sum() == 5 * 14
    target = torch.full((40, 40), torch.nan)
    _copy[(1,)](source, target, 40, 16, 0, 21, 10, True)
    assert torch.equal(target[16:21, :10], source.mT[16:21, :10])
    assert target.isfinite().sum() == 5 * 10


def test_offsets_beyond_32_bits():
    # the only tile that exists of a matrix of 2**20 x 2**13, at its end: 2**33 elements, 32 GB
    rows, stride, row = 2**20, 2**13, 2**20 - 16
    source, target = torch.randn(16, stride), torch.full((16, stride), torch.nan)
    before = row * stride * source.element_size()
    _at[(1,)](source.data_ptr() - before, target.data_ptr() - before, stride, row, rows, 16)
    assert torch.equal(target[:, :16], source[:, :16])
    assert target.isfinite().sum() == 16 * 16


def test_powers_of_two_fit_from_below():
    x = torch.tensor([0.0, 1e-45, 1e-38, 1e-20, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 1e5, 1e20, 1e38, 3e38, torch.inf, 7.0])
    for bits in (0, 15):
        out, back = torch.full_like(x, torch.nan), torch.full_like(x, torch.nan)
        _powers[(1,)](x, out, back, bits)
        assert torch.equal(back, 1 / out)
        mantissa, _ = out.frexp()
        assert (mantissa == 0.5).all() and (1 / out).isfinite().all() and (out >= torch.finfo(torch.float32).tiny).all()
        fits = (x > 1e-30) & (x < 1e30)
        assert ((x * out)[fits] < 2.0**bits).all() and ((x * out)[fits] >= 2.0 ** (bits - 1)).all()
