"""Whether the exact search finds FAISS's neighbours, up to ties.

    python tests/interop/neighbours.py --program target/release/examples/search

Needs numpy and faiss. Called by `cargo xtask bench knn`.
"""
import argparse
import pathlib
import subprocess
import tempfile

import faiss
import numpy as np


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--program", required=True)
    for name, value in dict(bank=50000, queries=10000, dim=512, k=200).items():
        parser.add_argument(f"--{name}", type=int, default=value)
    o = parser.parse_args()
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((10, o.dim), dtype=np.float32)

    def rows(n):
        x = centres[rng.integers(0, 10, n)] + 6 * rng.standard_normal((n, o.dim), dtype=np.float32)
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    bank, queries = rows(o.bank), rows(o.queries)
    index = faiss.IndexFlatIP(o.dim)
    index.add(bank)
    similarity, theirs = index.search(queries, o.k)
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        bank.tofile(folder / "bank.f32")
        queries.tofile(folder / "queries.f32")
        subprocess.run(
            [o.program, f"dim={o.dim}", f"k={o.k}", "rounds=1", f"bank_file={folder}/bank.f32",
             f"queries_file={folder}/queries.f32", f"found_file={folder}/found.u32"], check=True, stdout=subprocess.DEVNULL)
        ours = np.fromfile(folder / "found.u32", dtype="<u4").reshape(o.queries, o.k)
    differing = 0
    for q in range(o.queries):
        only = np.setxor1d(ours[q], theirs[q])
        if len(only):
            # Rows that only one side has must be as near as the last one, but for rounding.
            exact = bank[only].astype(np.float64) @ queries[q].astype(np.float64)
            assert np.all(np.abs(exact - similarity[q, -1]) < 1e-6), (q, only, exact - similarity[q, -1])
            differing += 1
    print(f"neighbours: {o.queries - differing} of {o.queries} sets identical, {differing} differ in ties within 1e-6")


main()
