"""Writes tests/fixtures/golden/evaluation.safetensors: values that scikit-learn computes on small seeded tables.

    python tests/interop/fixtures.py

Needs numpy, scikit-learn, scipy and safetensors. The tests of crates/knn compare with the file; it is written again only when a case is
added.
"""
import json
import pathlib

import numpy as np
import sklearn
from safetensors.numpy import save_file
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import adjusted_rand_score, confusion_matrix, normalized_mutual_info_score, silhouette_score

CLASSES, DIM = 6, 16
rng = np.random.default_rng(7)
centres = rng.standard_normal((CLASSES, DIM))


def table(n):
    labels = rng.integers(0, CLASSES, n)
    return (centres[labels] + 1.3 * rng.standard_normal((n, DIM))).astype(np.float32), labels.astype(np.int64)


rows, labels = table(600)
queries, query_labels = table(400)
case = {"sklearn": sklearn.__version__, "classes": CLASSES}
tensors = {"rows": rows, "labels": labels, "queries": queries, "query_labels": query_labels}
for c in (0.001, 1.0, 100.0):
    model = LogisticRegression(C=c, tol=1e-8, max_iter=10000).fit(rows, labels)
    case[f"accuracy_{c}"] = float(model.score(queries, query_labels))
    tensors[f"probabilities_{c}"] = model.predict_proba(queries).astype(np.float32)

means = KMeans(CLASSES, n_init=10, random_state=0).fit(rows)
clusters = means.labels_.astype(np.int64)
tensors["clusters"] = clusters
case["inertia"] = float(means.inertia_)
case["silhouette"] = float(silhouette_score(rows, clusters))
case["nmi"] = float(normalized_mutual_info_score(labels, clusters))
case["ari"] = float(adjusted_rand_score(labels, clusters))
counts = confusion_matrix(labels, clusters)
case["matched"] = float(counts[linear_sum_assignment(-counts)].sum() / len(labels))

path = pathlib.Path(__file__).parents[1] / "fixtures/golden/evaluation.safetensors"
save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, path, metadata={"case": json.dumps(case)})
print(path, json.dumps(case, indent=1))
