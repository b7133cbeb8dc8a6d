#!/usr/bin/env bash
# tokenizers 0.23.3: the ids that tokenizer.json declares for added tokens are not used; they are counted anew, in the
# order of the file, from the size of the vocabulary on.
#
# A vocabulary of three words and two added tokens. Declared without a gap, the ids are kept. Declared one further on
# (a checkpoint whose embedding table has a row left free), both move by one; declared in another order than the list's,
# one moves by seven. Nothing is said, and a tokenizer saved again declares the new ids:
#
#   declared <s>=3  <think>=4    loaded <s>=3 <think>=4
#   declared <s>=4  <think>=5    loaded <s>=3 <think>=4
#   declared <s>=10 <think>=3    loaded <s>=3 <think>=4
#
# A model trained with the declared ids then reads the wrong rows of its embedding table for just the tokens that open and
# close its turns. Compare the declared ids with those of the loaded tokenizer.
#
# Needs python3 with venv and the Python package index. Exits 1 where the behaviour is another one than above.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check tokenizers==0.23.3
"$folder/venv/bin/python" - <<'PYTHON'
import json

from tokenizers import Tokenizer


def loaded(declared):
    added = [
        {"id": id, "content": text, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False, "special": True}
        for text, id in declared.items()
    ]
    model = {"type": "WordLevel", "vocab": {"a": 0, "b": 1, "<unk>": 2}, "unk_token": "<unk>"}
    tokenizer = Tokenizer.from_str(json.dumps({
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": None, "decoder": None, "model": model,
    }))
    ids = {text: tokenizer.token_to_id(text) for text in declared}
    saved = {token["content"]: token["id"] for token in json.loads(tokenizer.to_str())["added_tokens"]}
    print("declared", *(f"{text}={id:<3}" for text, id in declared.items()), end="  ")
    print("loaded", *(f"{text}={id}" for text, id in ids.items()))
    return ids, saved


new = {"<s>": 3, "<think>": 4}
for declared in (new, {"<s>": 4, "<think>": 5}, {"<s>": 10, "<think>": 3}):
    if loaded(declared) != (new, new):
        raise SystemExit("the behaviour has changed")
PYTHON
