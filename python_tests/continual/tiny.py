"""Random models of three architectures with a tokenizer trained on the spot, and tasks to learn."""

import json
import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from tokenizers.decoders import ByteLevel
from tokenizers.processors import TemplateProcessing
from transformers import (
    BertConfig,
    BertModel,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from gsr_kernels.continual.kinds import Kind
from gsr_kernels.continual.models import find_model, open_kind
from gsr_kernels.continual.settings import RunSettings

SPECIAL = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<reply>{% endif %}"
)
WORDS = ("red", "green", "blue", "seven", "nine", "apple", "pear", "river", "house", "stone")


def tokenizer(ends: bool = False, chats: bool = False) -> PreTrainedTokenizerFast:
    """Byte-level BPE of 300 tokens; ``ends`` puts the end of the text behind every row, as T5's does."""
    raw = Tokenizer(models.BPE(unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=list(SPECIAL.values()), initial_alphabet=alphabet, show_progress=False
    )
    raw.train_from_iterator(WORDS, trainer)
    if ends:
        raw.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    made = PreTrainedTokenizerFast(tokenizer_object=raw, **SPECIAL)
    made.chat_template = CHAT if chats else None
    return made


def save_model(kind: str, folder: Path, dropout: float = 0.0, chats: bool = False) -> str:
    """Writes a random model of a kind with its tokenizer; returns the folder."""
    torch.manual_seed(0)
    common = {"vocab_size": 300, "pad_token_id": 0, "eos_token_id": 1}
    if kind == "causal":
        size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
        config = LlamaConfig(num_key_value_heads=2, bos_token_id=1, attention_dropout=dropout, **size, **common)
        model = LlamaForCausalLM(config)
    elif kind == "seq2seq":
        size = {"d_model": 32, "d_ff": 64, "d_kv": 8, "num_layers": 2, "num_heads": 4}
        model = T5ForConditionalGeneration(T5Config(decoder_start_token_id=0, dropout_rate=dropout, **size, **common))
    else:
        size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
        rates = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
        model = BertModel(BertConfig(**size, **rates, **common))
    model.save_pretrained(folder)
    tokenizer(kind == "seq2seq", chats).save_pretrained(folder)
    return str(folder)


def expert_model(architecture: str) -> PreTrainedModel:
    """A random model of packed experts, which transformers saves one by one."""
    torch.manual_seed(0)
    size = {"vocab_size": 300, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    size |= {"num_key_value_heads": 2, "num_experts_per_tok": 2, "pad_token_id": 0, "eos_token_id": 1}
    if architecture == "mixtral":
        return MixtralForCausalLM(MixtralConfig(intermediate_size=8, num_local_experts=4, **size))
    if architecture == "qwen3":
        experts = {"moe_intermediate_size": 8, "num_experts": 4, "head_dim": 8, "intermediate_size": 8}
        return Qwen3MoeForCausalLM(Qwen3MoeConfig(**experts, **size))
    low = {"kv_lora_rank": 4, "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8}
    experts = {"moe_intermediate_size": 8, "n_routed_experts": 4, "n_group": 2, "topk_group": 1}
    return DeepseekV3ForCausalLM(DeepseekV3Config(**low, **experts, first_k_dense_replace=1, **size))


def save_tasks(folder: Path, names: tuple[str, ...] = ("first", "second", "third"), rows: int = 40) -> str:
    """Writes tasks of JSON lines with two options each; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        generator = random.Random(name)
        options = [" " + word for word in generator.sample(WORDS, 2)]
        lines = []
        for number in range(rows):
            words = generator.sample(WORDS, 3)
            choice = options[words[0] < words[1]]
            lines.append({"prompt": f"{number} {' '.join(words)}:", "completion": choice, "options": options})
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return str(folder)


def tiny_kind(settings: RunSettings) -> Kind:
    """The kind of the settings' model."""
    return open_kind(settings, *find_model(settings.model))
