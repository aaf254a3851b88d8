"""Two tasks of JSON lines, and a causal language model of random weights to try the command on.

python examples/own_tasks.py --folder own
"""

import argparse
import json
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

parser = argparse.ArgumentParser()
parser.add_argument("--folder", default="own")
folder = Path(parser.parse_args().folder)

COLOURS = {"sky": "blue", "grass": "green", "snow": "white", "coal": "black", "blood": "red"}
SOUNDS = {"cat": "meow", "dog": "woof", "cow": "moo", "duck": "quack", "frog": "croak"}

tasks = {"1-colours": COLOURS, "2-sounds": SOUNDS}
for name, facts in tasks.items():
    options = [f" {answer}" for answer in facts.values()]
    rows = [
        {"prompt": f"{many} {thing} :", "completion": f" {answer}", "options": options}
        for thing, answer in facts.items()
        for many in ("a", "the", "one", "some", "this", "that")
    ]
    (folder / "tasks").mkdir(parents=True, exist_ok=True)
    (folder / "tasks" / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))

# a word is a token; a model of your own brings its tokenizer
words = ["<pad>", "</s>", "<unk>", "a", "the", "one", "some", "this", "that", ":"]
for facts in tasks.values():
    words += [*facts, *facts.values()]
tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="<unk>"))
tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder / "model")
shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
LlamaForCausalLM(LlamaConfig(vocab_size=64, pad_token_id=0, eos_token_id=1, **shape)).save_pretrained(folder / "model")
