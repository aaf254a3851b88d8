import numpy as np
import pytest

from gsr_kernels.backends.triton.tables import pack, tile_table

# the weights of one layer, (rows, columns), and how many layers
FALCON3_1B = ([(2048, 2048), (1024, 2048), (1024, 2048), (2048, 2048), (8192, 2048), (8192, 2048), (2048, 8192)], 18)
LLAMA_3_8B = ([(4096, 4096), (1024, 4096), (1024, 4096), (4096, 4096), (14336, 4096), (14336, 4096), (4096, 14336)], 32)
RAGGED = ([(17, 33), (1, 64), (130, 257), (1, 1)], 2)


@pytest.mark.parametrize("model", [FALCON3_1B, LLAMA_3_8B, RAGGED], ids=["Falcon3-1B", "Llama-3-8B", "ragged"])
@pytest.mark.parametrize("cut", [(128, 128), (64, 256)])
def test_every_tile_once(model, cut):
    layer, layers = model
    shapes = layer * layers
    tiles = tile_table(range(len(shapes)), shapes, *cut)
    assert tiles.dtype == np.int32
    assert len(np.unique(tiles, axis=0)) == len(tiles)
    sizes = np.array([[-(-rows // cut[0]), -(-columns // cut[1])] for rows, columns in shapes])
    assert (tiles[:, 1:] >= 0).all() and (tiles[:, 1:] < sizes[tiles[:, 0]]).all()
    assert np.array_equal(np.bincount(tiles[:, 0]), sizes.prod(axis=1))


def test_neighbours_share_what_they_read():
    tiles = tile_table([0], [(2048, 2048)], 128, 128)
    # so many programs run at once on a Hopper GPU, two to a multiprocessor
    for start in range(0, len(tiles), 264):
        wave = tiles[start : start + 264]
        assert len(np.unique(wave[:, 1])) + len(np.unique(wave[:, 2])) <= 32
    assert tile_table([], [], 128, 128).shape == (0, 3)


def test_groups_hold_one_form_and_stay_under_the_budget():
    keys = ["a", "a", "a", "b", "b", "b", "b"]
    sizes = [5, 5, 5, 30, 1, 9, 1]
    ranges = list(pack(keys, sizes, 10))
    assert ranges == [(0, 2), (2, 3), (3, 4), (4, 6), (6, 7)]
    for start, end in ranges:
        assert len(set(keys[start:end])) == 1
        assert sum(sizes[start:end]) <= 10 or end - start == 1
    assert list(pack([], [], 10)) == []
