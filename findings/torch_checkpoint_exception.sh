#!/usr/bin/env bash
# torch 2.13.0: the error of a failed torch.distributed.checkpoint.load is no Exception. CheckpointException derives from
# BaseException, as KeyboardInterrupt does: `except Exception` does not catch that the folder is missing. What is inside
# is no FileNotFoundError either, but an AssertionError that names the missing .metadata.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
cat > "$work/check.py" <<'PY'
import torch
import torch.distributed.checkpoint as dcp

print("torch", torch.__version__)
caught = None
try:
    try:
        dcp.load({"w": torch.zeros(2)}, checkpoint_id="nowhere")
    except Exception as error:
        caught = error
except BaseException as error:
    (cause, _), *_ = error.failures.values()
    print(type(error).__name__, "passes `except Exception`; inside:", type(cause).__name__)
    assert type(error).__name__ == "CheckpointException" and not isinstance(error, Exception)
    assert isinstance(cause, AssertionError) and ".metadata" in str(cause)
else:
    raise SystemExit("nothing was raised")
assert caught is None, caught
print("as described")
PY
cd "$work" && venv/bin/python -W ignore check.py
