#!/usr/bin/env bash
# bm25s 0.3.16: a query that shares no word with any passage still gets as many passages as were asked for.
#
# Four passages, three asked for. A query of two words that occur nowhere returns 3, 2, 1: the last passages of the
# file, each with score 0. A query of a stop word alone and an empty one return the same. A query with one matching
# passage returns it first and fills up with the same strangers:
#
#   'zebra quantum'   [3, 2, 1]   [0, 0, 0]
#   'the'             [3, 2, 1]   [0, 0, 0]
#   ''                [3, 2, 1]   [0, 0, 0]
#   'paris'           [2, 3, 1]   [> 0, 0, 0]
#
# A retrieval server that passes the ids on tells a search agent that three unrelated passages answer its query, and
# can never say that nothing was found. Keep the passages whose score is above 0, and nothing else.
#
# Needs python3 with venv and the Python package index. Exits 1 where the behaviour is another one than above.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check bm25s==0.3.16 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import bm25s

PASSAGES = ["the cat sat on the mat", "dogs bark loudly", "paris is a city in france", "rivers flow to the sea"]
index = bm25s.BM25()
index.index(bm25s.tokenize(PASSAGES, show_progress=False), show_progress=False)


def search(query):
    words = bm25s.tokenize([query], show_progress=False)
    ids, scores = index.retrieve(words, k=3, show_progress=False)
    print(f"{query!r:<17} {ids[0].tolist()}   {scores[0].tolist()}")
    return ids[0].tolist(), scores[0].tolist()


nothing = [search(query) for query in ("zebra quantum", "the", "")]
ids, scores = search("paris")
is_as_described = (
    all(found == ([3, 2, 1], [0, 0, 0]) for found in nothing)
    and ids == [2, 3, 1]
    and scores[0] > 0
    and scores[1:] == [0, 0]
)
if not is_as_described:
    raise SystemExit("the behaviour has changed")
PYTHON
