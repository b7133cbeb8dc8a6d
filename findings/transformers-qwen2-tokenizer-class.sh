#!/usr/bin/env bash
# transformers 5.24.0: AutoTokenizer reads the tokenizer of every qwen2 model in Qwen's way, whatever its files say.
#
# One folder: config.json with model_type qwen2, a tokenizer.json (byte-level BPE, GPT-2's splitting, no normaliser, one
# special token <|end|>), and a tokenizer_config.json that names the class PreTrainedTokenizerFast and <|end|> as
# eos_token. The same files with model_type llama are read as they are written; with qwen2, only vocabulary and merges
# are taken, and normaliser and splitting are Qwen's. No warning is given.
#
#                        class              ' 1999'                       'é' as e + U+0301   <|endoftext|>
#   tokenizer.json       -                  [Ġ1999]                       3 tokens            none
#   AutoTokenizer llama  TokenizersBackend  [Ġ1999]                       3 tokens            none
#   AutoTokenizer qwen2  Qwen2Tokenizer     [Ġ, 1, 9, 9, 9]               2 tokens            a new id behind the vocabulary
#
# So a qwen2 checkpoint with a tokenizer of its own gets other ids than it was trained on, and an id that its embedding
# table may not have. PreTrainedTokenizerFast.from_pretrained(folder) reads the files as they are. Or give a tokenizer
# that is made for a qwen2 model NFC and Qwen's pattern from the start; then both ways agree.
#
# Needs python3 with venv and the Python package index. Exits 1 where the behaviour is another one than above.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.24.0 tokenizers==0.23.3
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import json
import os
import sys

os.environ["TRANSFORMERS_VERBOSITY"] = "error"
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

tokenizer = Tokenizer(models.BPE())
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
trainer = trainers.BpeTrainer(
    vocab_size=300,
    show_progress=False,
    initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    special_tokens=["<|end|>"],
)
tokenizer.train_from_iterator(["in the year 1999"] * 9, trainer)


def saved(model_type):
    path = f"{sys.argv[1]}/{model_type}"
    os.mkdir(path)
    tokenizer.save(f"{path}/tokenizer.json")
    with open(f"{path}/config.json", "w") as file:
        json.dump({"model_type": model_type}, file)
    with open(f"{path}/tokenizer_config.json", "w") as file:
        json.dump({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>"}, file)
    return path


def shown(name, read):
    tokens = [read.convert_ids_to_tokens(read(text, add_special_tokens=False)["input_ids"]) for text in (" 1999", "e\u0301")]
    added = read.convert_tokens_to_ids("<|endoftext|>")
    print(f"{name:<32} {type(read).__name__:<18} {tokens[0]} {len(tokens[1])} tokens  <|endoftext|>: {added}")
    return type(read).__name__, tokens[0], len(tokens[1]), added


as_written = ["\u01201999"]
size = tokenizer.get_vocab_size()
assert tokenizer.encode(" 1999").tokens == as_written and len(tokenizer.encode("e\u0301").tokens) == 3
llama, qwen2 = saved("llama"), saved("qwen2")
is_as_described = (
    shown("AutoTokenizer, llama", AutoTokenizer.from_pretrained(llama)) == ("TokenizersBackend", as_written, 3, None)
    and shown("AutoTokenizer, qwen2", AutoTokenizer.from_pretrained(qwen2))
    == ("Qwen2Tokenizer", ["\u0120", "1", "9", "9", "9"], 2, size)
    and shown("PreTrainedTokenizerFast, qwen2", PreTrainedTokenizerFast.from_pretrained(qwen2))
    == ("TokenizersBackend", as_written, 3, None)
)
if not is_as_described:
    raise SystemExit("the behaviour has changed")
PYTHON
