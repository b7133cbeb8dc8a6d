#!/usr/bin/env bash
# faiss-cpu 1.15.1: an HNSW graph (M = 16, efConstruction = 200, efSearch = 128) over a corpus in which one vector occurs
# 1,000 times loses most of the others.
#
# Random unit vectors of 64 numbers, inner product, 100 random queries, three results each; means over eight seeds. "right" is
# the share of scores that equal those of the flat index:
#
#   1,000 vectors, each once                       right 1.00
#   1,000 vectors, one 1,000 times, copies first   right 0.64
#   1,000 vectors, one 1,000 times, shuffled       right 0.71
#   100 vectors, one 1,000 times, copies first     right 0.35
#   100 vectors, one 1,000 times, shuffled         right 0.17
#
# The neighbours of a copy are its other copies, at distance 0: a search that reaches one walks among them. Corpora cut
# into passages hold such copies (empty sections, "See also", licence lines), and neither building nor searching says so.
# Put equal vectors into a graph once.
#
# Needs python3 with venv and the Python package index. Exits 1 where the behaviour is another one than above (the
# second digits may differ between machines).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check faiss-cpu==1.15.1 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import faiss
import numpy as np

D, K, SEEDS = 64, 3, 8
faiss.omp_set_num_threads(1)


def right(seed, n, copies, shuffled):
    random = np.random.default_rng(seed)

    def unit(n):
        rows = random.standard_normal((n, D)).astype("float32")
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    rows = unit(n)
    rows = np.concatenate([np.repeat(rows[:1], copies, axis=0), rows[1:]])
    if shuffled:
        rows = rows[random.permutation(len(rows))]
    queries = unit(100)
    flat = faiss.IndexFlatIP(D)
    graph = faiss.IndexHNSWFlat(D, 16, faiss.METRIC_INNER_PRODUCT)
    graph.hnsw.efConstruction, graph.hnsw.efSearch = 200, 128
    flat.add(rows)
    graph.add(rows)
    return float((np.abs(flat.search(queries, K)[0] - graph.search(queries, K)[0]) < 1e-5).mean())


def mean(name, *case):
    share = np.mean([right(seed, *case) for seed in range(SEEDS)])
    print(f"{name:<46} right {share:.2f}")
    return share


once = mean("1,000 vectors, each once", 1000, 1, False)
many = [
    mean("1,000 vectors, one 1,000 times, copies first", 1000, 1000, False),
    mean("1,000 vectors, one 1,000 times, shuffled", 1000, 1000, True),
    mean("100 vectors, one 1,000 times, copies first", 100, 1000, False),
    mean("100 vectors, one 1,000 times, shuffled", 100, 1000, True),
]
if not (once > 0.99 and max(many[:2]) < 0.9 and max(many[2:]) < 0.5):
    raise SystemExit("the behaviour has changed")
PYTHON
