"""What the program writes, read and computed again by the libraries that people use beside it.

    python tests/interop/evaluate.py --program target/release/twinsight [--run FOLDER]

Needs numpy, scipy, scikit-learn, pyarrow, tensorboard, and duckdb or polars or both. Without --run a small one is trained. Called by
`cargo xtask interop --evaluate`.
"""
import argparse
import csv
import json
import pathlib
import subprocess
import tempfile

import numpy as np
import pyarrow
import pyarrow.parquet
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from sklearn.preprocessing import StandardScaler
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--program", required=True)
    parser.add_argument("--run")
    o = parser.parse_args()
    program = str(pathlib.Path(o.program).resolve())

    def twinsight(*arguments):
        done = subprocess.run([program, *map(str, arguments), "--json"], check=True, capture_output=True, text=True)
        return json.loads(done.stdout.splitlines()[-1])

    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        run = o.run or folder / "run"
        if not o.run:
            twinsight("train", "--data", "fashion-mnist-mini", "--recipe", "demo", "--limit", 3000, "--epochs", 2, "--out", run,
                      "--set", "eval.probe_images=32")
        for kind in ("train", "test"):
            more = ["--test"] if kind == "test" else []
            twinsight("embed", run, "--out", folder / f"{kind}.npy", *more)
        parquet = folder / "vectors.parquet"
        written = twinsight("embed", run, "--out", parquet)

        table = pyarrow.parquet.read_table(parquet)
        vector = table.schema.field("vector").type
        assert pyarrow.types.is_fixed_size_list(vector) and vector.list_size == written["dim"], vector
        rows = np.load(folder / "train.npy")
        flat = table["vector"].combine_chunks().flatten().to_numpy().reshape(rows.shape)
        assert np.array_equal(flat, rows) and table.num_rows == written["rows"]
        assert table.column_names == ["path", "label", "vector"]
        print(f"pyarrow {pyarrow.__version__}: {table.num_rows} rows, {vector}, equal to npy")
        readers = 0
        try:
            import duckdb
            count, length = duckdb.sql(f"select count(*), min(len(vector)) from '{parquet}'").fetchall()[0]
            assert (count, length) == (written["rows"], written["dim"])
            readers += 1
            print(f"duckdb {duckdb.__version__}: {count} rows of {length} numbers")
        except ImportError:
            print("duckdb: not installed")
        try:
            import polars
            frame = polars.read_parquet(parquet)
            assert frame.height == written["rows"] and frame["vector"].dtype == polars.Array(polars.Float32, written["dim"])
            readers += 1
            print(f"polars {polars.__version__}: {frame.height} rows, {frame['vector'].dtype}")
        except ImportError:
            print("polars: not installed")
        assert readers > 0, "neither duckdb nor polars is installed: one of them has to read the file"

        labels = np.array(table["label"].to_pylist())
        with open(folder / "test.images.csv") as file:
            test_labels = np.array([line["label"] for line in csv.DictReader(file)])
        # All images, as `embed` has them, whatever the run was limited to.
        figures = twinsight("eval", run, "--protocol", "simclr", "--limit", 0)["runs"][0]["figures"][0]
        c = float(figures["settings"].split("C = ")[1].split(" ")[0])
        scaler = StandardScaler().fit(rows)
        theirs = LogisticRegression(C=c, max_iter=5000).fit(scaler.transform(rows), labels)
        theirs = theirs.score(scaler.transform(np.load(folder / "test.npy")), test_labels)
        print(f"linear probe, C = {c}: {figures['top1']:.4f} here, {theirs:.4f} in scikit-learn")
        assert abs(figures["top1"] - theirs) <= 0.002 + 1e-9

        # k-NN, every step by hand: cosine, weights exp(similarity / T), the class with most of them.
        for k, temperature in ((20, 0.07), (200, 0.1)):
            ours = twinsight("knn", run, "--limit", 0, "--k", k, "--temperature", temperature)
            assert ours["measured_on"] == "test" and (ours["k"], ours["temperature"]) == (k, temperature), ours
            bank = rows.astype(np.float64) / np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
            queries = np.load(folder / "test.npy").astype(np.float64)
            similarity = queries / np.linalg.norm(queries, axis=1, keepdims=True) @ bank.T
            near = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
            names = sorted(set(labels))
            votes = np.zeros((len(queries), len(names)))
            number = np.array([names.index(label) for label in labels])
            weight = np.exp((np.take_along_axis(similarity, near, 1) - similarity.max(1, keepdims=True)) / temperature)
            for i in range(k):
                np.add.at(votes, (np.arange(len(queries)), number[near[:, i]]), weight[:, i])
            theirs = float(np.mean([names[best] == label for best, label in zip(votes.argmax(1), test_labels)]))
            print(f"k-NN, k = {k}, T = {temperature}: {ours['knn']:.4f} here, {theirs:.4f} by numpy")
            # Neighbours whose similarity is the same in f32 may be taken in another order.
            assert abs(ours["knn"] - theirs) <= 0.001 + 1e-9

        found = twinsight("cluster", run, "--clusters", 10, "--out", folder / "clusters.csv")
        unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        best = KMeans(10, n_init=10, random_state=0).fit(unit).inertia_
        print(f"k-means inertia: {found['inertia']:.4f} here, {best:.4f} in scikit-learn (best of 10)")
        assert found["inertia"] <= best * 1.01
        with open(folder / "clusters.csv") as file:
            clusters = [int(line["cluster"]) for line in csv.DictReader(file)]
        nmi, ari = normalized_mutual_info_score(labels, clusters), adjusted_rand_score(labels, clusters)
        print(f"NMI {found['nmi']:.8f} and {nmi:.8f}, ARI {found['ari']:.8f} and {ari:.8f}")
        assert abs(found["nmi"] - nmi) < 1e-6 and abs(found["ari"] - ari) < 1e-6
        names = sorted(set(labels))
        table = np.zeros((len(names), 10))
        np.add.at(table, ([names.index(label) for label in labels], np.array(clusters) - 1), 1)
        matched = table[linear_sum_assignment(table, maximize=True)].sum() / len(labels)
        print(f"accuracy of the best matching: {found['matched_accuracy']:.8f} here, {matched:.8f} in scipy")
        assert abs(found["matched_accuracy"] - matched) < 1e-9

        events = EventAccumulator(str(run), size_guidance={"scalars": 0, "images": 0})
        events.Reload()
        tags = events.Tags()
        assert {"train/loss", "train/lr", "knn/held_out"} <= set(tags["scalars"]), tags
        metrics = [json.loads(line) for line in open(pathlib.Path(run) / "metrics.jsonl")]
        logged = {m["step"]: m["loss"] for m in metrics if m["event"] == "step"}
        for event in events.Scalars("train/loss"):
            assert abs(event.value - logged[event.step]) <= 1e-6 * abs(event.value), event
        for tag in ("views", "neighbours"):
            assert events.Images(tag)[0].encoded_image_string.startswith(b"\x89PNG")
        config = (pathlib.Path(run) / "projector_config.pbtxt").read_text()
        from google.protobuf import text_format
        from tensorboard.plugins.projector import ProjectorConfig
        projector = text_format.Parse(config, ProjectorConfig()).embeddings[0]
        vectors = np.loadtxt(pathlib.Path(run) / projector.tensor_path, delimiter="\t")
        names = (pathlib.Path(run) / projector.metadata_path).read_text().splitlines()
        assert len(names) == len(vectors) + 1 and (pathlib.Path(run) / projector.sprite.image_path).exists()
        print(f"tensorboard: {len(tags['scalars'])} scalars, {len(tags['images'])} image tags, a projector of {vectors.shape}")


main()
