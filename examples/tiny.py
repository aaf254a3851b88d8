"""A Llama of 23,000 random weights and rows of random tokens, for the examples beside it."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM


def tiny_llama(seed: int = 0) -> LlamaForCausalLM:
    """Two layers, a vocabulary of 64."""
    torch.manual_seed(seed)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=64, num_key_value_heads=2, pad_token_id=0, **shape))


def rows(count: int = 64, seed: int = 0) -> list[dict[str, list[int]]]:
    """Tokens that count upwards from a random start: something to learn."""
    starts = torch.randint(1, 40, (count,), generator=torch.Generator().manual_seed(seed)).tolist()
    return [{"input_ids": list(range(start, start + 16)), "labels": list(range(start, start + 16))} for start in starts]
