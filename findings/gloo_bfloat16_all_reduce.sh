#!/usr/bin/env bash
# torch 2.13.0, gloo: an all-reduce of a bfloat16 (or float16) tensor rounds at every hop, and the elements of one tensor
# are added in different orders. On 4 ranks a constant tensor comes back with two values: 1 from rank 0 and 2^-8 from the
# three others is 1.0 in some places and 1.015625 in others; the exact sum is 1.01171875. All ranks agree with each other,
# so a test that compares ranks sees nothing; a test against one process in the same dtype fails by a place's position.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
cat > "$work/check.py" <<'PY'
import sys

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

WORLD, COUNT = 4, 1000


def rank(index, store):
    dist.init_process_group("gloo", store=dist.FileStore(store, WORLD), rank=index, world_size=WORLD)
    for dtype, small in ((torch.bfloat16, 2.0**-8), (torch.float16, 2.0**-11), (torch.float32, 2.0**-8)):
        x = torch.full((COUNT,), 1.0 if index == 0 else small, dtype=dtype)
        dist.all_reduce(x)
        everyones = [torch.empty_like(x) for _ in range(WORLD)]
        dist.all_gather(everyones, x)
        if index == 0:
            values, counts = x.unique(return_counts=True)
            print(dtype, "of an exact", 1 + 3 * small, "gives", dict(zip(values.tolist(), counts.tolist())))
            assert all(torch.equal(x, other) for other in everyones)
            if dtype == torch.float32:
                assert values.tolist() == [1 + 3 * small]
            else:
                assert values.tolist() == [1.0, 1 + 4 * small], values
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    print("torch", torch.__version__)
    mp.spawn(rank, (sys.argv[1],), nprocs=WORLD)
    print("as described")
PY
cd "$work" && OMP_NUM_THREADS=1 venv/bin/python check.py "$work/store"
