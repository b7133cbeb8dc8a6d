#!/usr/bin/env bash
# faiss-cpu 1.15.1: which of several equal passages a search returns, and in which order, depends on the index.
#
# Ten equal vectors, the three nearest asked for. All scores are the same, so nothing but the library decides:
#
#   IndexFlatIP              2 1 0    the lowest ids, listed from the highest
#   IndexFlatL2              0 1 2    the lowest ids, listed from the lowest
#   IndexHNSWFlat, IP        9 8 7    the highest ids
#
# Corpora of Wikipedia passages hold equal passages. Recall that is counted by id therefore calls an HNSW index wrong
# where it found passages just as near, and "Doc 1" of an agent's observation is another passage after the index type
# was changed, although no score did. Compare by score, or remove equal vectors first.
#
# Needs python3 with venv and the Python package index. Exits 1 where the behaviour is another one than above.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check faiss-cpu==1.15.1 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import faiss
import numpy as np

WIDTH, EQUAL, ASKED = 8, 10, 3
passages = np.ones((EQUAL, WIDTH), dtype=np.float32)
query = np.ones((1, WIDTH), dtype=np.float32)
indexes = {
    "IndexFlatIP": faiss.IndexFlatIP(WIDTH),
    "IndexFlatL2": faiss.IndexFlatL2(WIDTH),
    "IndexHNSWFlat, IP": faiss.IndexHNSWFlat(WIDTH, 32, faiss.METRIC_INNER_PRODUCT),
}
expected = {"IndexFlatIP": [2, 1, 0], "IndexFlatL2": [0, 1, 2], "IndexHNSWFlat, IP": [9, 8, 7]}
found = {}
for name, index in indexes.items():
    index.add(passages)
    scores, ids = index.search(query, ASKED)
    assert len(set(scores[0])) == 1, "the scores are not equal"
    found[name] = ids[0].tolist()
    print(f"{name:<20} {found[name]}")
if found != expected:
    raise SystemExit(f"the behaviour has changed: {expected} was expected")
PYTHON
