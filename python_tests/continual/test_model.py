"""The decoder, the training loop and the score."""

import math
import random

import pytest
import torch

from gsr_kernels.continual.model import MARK, ByteDecoder, ModelConfig
from gsr_kernels.continual.train import IGNORED, batches, collate, score, train

TINY = ModelConfig(width=16, layers=2, heads=2, kv_heads=1)


def test_square_wide_and_tall_weights_occur():
    shapes = {tuple(weight.shape) for name, weight in ByteDecoder(TINY).named_parameters() if "blocks" in name}
    assert {(16, 16), (8, 16), (64, 16), (16, 64)} <= shapes


def test_the_past_does_not_see_the_future():
    model = ByteDecoder(TINY)
    tokens = torch.randint(0, 257, (2, 9))
    changed = tokens.clone()
    changed[:, 5:] = torch.randint(0, 257, (2, 4))
    torch.testing.assert_close(model(tokens)[:, :5], model(changed)[:, :5])


def test_attention_knows_distances_not_places():
    # rotary positions: what stands before a constant run of bytes is all that can move its logits
    model = ByteDecoder(ModelConfig(width=16, layers=1, heads=2, kv_heads=1))
    a, b = torch.randint(0, 256, (2,)).tolist()
    near, far = (model(torch.tensor([[a] * gap + [b]]))[0, -1] for gap in (2, 3))
    assert not torch.equal(near, far)
    same = [model(torch.tensor([[a] * length]))[0, -1] for length in (1, 6)]
    torch.testing.assert_close(*same)


def test_seeds_make_models():
    first, again, other = (list(ByteDecoder(TINY, seed=seed).parameters()) for seed in (1, 1, 2))
    assert all(torch.equal(one, two) for one, two in zip(first, again))
    assert not torch.equal(first[0], other[0])


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"width": 0}, "width must be at least 1"),
        ({"layers": 0}, "layers must be at least 1"),
        ({"width": 20}, r"width 20 must be a multiple of 2 \* heads = 8"),
        ({"heads": 4, "kv_heads": 3}, "heads 4 must be a multiple of kv_heads 3"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig(**sizes)


def test_only_the_completion_is_asked():
    tokens, targets = collate([(b"ab", b"cd"), (b"", b"x")])
    assert tokens.tolist() == [[97, 98, MARK, 99], [MARK, 0, 0, 0]]
    no = IGNORED
    assert targets.tolist() == [[no, no, 99, 100], [120, no, no, no]]


def test_an_epoch_meets_every_row_once():
    rows = [(b"", bytes([i])) for i in range(10)]
    stream = batches(rows, 4, "a")
    seen = [row for _ in range(5) for row in next(stream)]
    assert sorted(seen[:10]) == sorted(seen[10:]) == rows
    assert seen[:10] != seen[10:]
    again, other = (next(batches(rows, 10, order)) for order in ("a", "b"))
    assert again == seen[:10] != other


def test_batches_larger_than_the_rows():
    assert len(next(batches([(b"", b"a"), (b"", b"b")], 5, ""))) == 5


def test_the_score_counts_bytes_whatever_the_batches():
    model = ByteDecoder(TINY)
    generator = random.Random(0)
    rows = [(generator.randbytes(generator.randrange(9)), generator.randbytes(1 + i % 7)) for i in range(20)]
    right = total = 0
    for prompt, completion in rows:
        for i, byte in enumerate(completion):
            logits = model(torch.tensor([[*prompt, MARK, *completion[:i]]]))[0, -1]
            right += int(logits.argmax()) == byte
            total += 1
    assert score(model, rows) == pytest.approx(100 * right / total)
    assert score(model, rows, batch=3) == score(model, rows)


def test_training_learns_and_the_rate_rises_and_falls():
    model = ByteDecoder(TINY)
    rows = [(b"a", b"bcd"), (b"x", b"yz")]
    optimizer = torch.optim.AdamW(model.parameters())
    rates = []
    train(
        model,
        optimizer,
        rows,
        steps=40,
        batch=4,
        lr=0.02,
        order="",
        tick=lambda: rates.append(optimizer.param_groups[0]["lr"]),
    )
    assert score(model, rows) == 100
    assert max(rates) == 0.02 and rates.index(0.02) == 1
    assert rates[0] == 0.01 and rates[2:] == sorted(rates[2:], reverse=True) and rates[-1] == pytest.approx(0.02 / 38)


def test_a_rate_that_diverges_is_named():
    model = ByteDecoder(TINY)
    with torch.no_grad():
        model.embedding.weight[0] = math.inf
    with pytest.raises(FloatingPointError, match=r"at step 1: lr 0\.5 is too high"):
        train(
            model, torch.optim.AdamW(model.parameters()), [(b"\0", b"a")],
            steps=1, batch=1, lr=0.5, order="", tick=lambda: None,
        )  # fmt: skip
