"""Which model reads handwritten digits best? Cross-validation over a grid of parameters, with scikit-learn hoisted.

    python examples/digits.py            # needs numpy and scikit-learn
    python examples/digits.py --quick    # a smaller grid

Each call trains and scores one model with one set of parameters on one fold.  The library imports scikit-learn once per worker
and loads the digits once (its shared context), before it forks its slots; no call does either.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from typing import Any

import windlass


def load() -> dict[str, Any]:
    """The library's context: a function that names one of these as a parameter is given it."""
    from sklearn import datasets

    module: Any = datasets  # scikit-learn has no types
    digits = module.load_digits()
    return {"images": digits.data / 16.0, "labels": digits.target}


def score(model: str, parameters: dict[str, Any], fold: int, folds: int, images: Any = None, labels: Any = None) -> float:
    """The share of one fold's digits that a model trained on the others reads right."""
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.model_selection import StratifiedKFold
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.svm import SVC

    kinds: dict[str, Any] = {"SVC": SVC, "k neighbours": KNeighborsClassifier, "random forest": RandomForestClassifier}
    cut: Any = StratifiedKFold(folds, shuffle=True, random_state=0)
    train, test = list(cut.split(images, labels))[fold]
    fitted = kinds[model](**parameters).fit(images[train], labels[train])
    return float(fitted.score(images[test], labels[test]))


def grid(quick: bool) -> list[tuple[str, dict[str, Any]]]:
    """Models and their parameters."""
    if quick:
        return [("SVC", {"C": 1.0}), ("SVC", {"C": 10.0}), ("k neighbours", {"n_neighbors": 1}), ("k neighbours", {"n_neighbors": 5})]
    machines = [("SVC", {"C": c, "gamma": gamma}) for c, gamma in itertools.product((0.1, 1.0, 10.0), ("scale", 0.01, 0.1))]
    neighbours = [("k neighbours", {"n_neighbors": n, "weights": w}) for n, w in itertools.product((1, 3, 5, 9), ("uniform", "distance"))]
    forests = [
        ("random forest", {"n_estimators": n, "max_depth": d, "random_state": 0}) for n, d in itertools.product((50, 200), (8, None))
    ]
    return [*machines, *neighbours, *forests]


def main() -> None:
    parser = argparse.ArgumentParser(description="Cross-validate models on scikit-learn's digits.")
    parser.add_argument("--quick", action="store_true", help="a smaller grid")
    parser.add_argument("--folds", type=int, default=5)
    chosen = parser.parse_args()
    began = time.perf_counter()
    with windlass.Manager() as manager, windlass.Factory(manager, "local"):
        manager.install_library("digits", score, context=load, share_context=True)
        rows: list[tuple[str, dict[str, Any], list[Any]]] = []
        for model, parameters in grid(chosen.quick):
            calls = [windlass.FunctionCall("digits", "score", model, parameters, fold, chosen.folds) for fold in range(chosen.folds)]
            rows.append((model, parameters, [manager.submit(call) for call in calls]))
        table: list[tuple[float, float, str, dict[str, Any]]] = []
        for model, parameters, futures in rows:
            scores = [future.result() for future in futures]
            table.append((statistics.fmean(scores), statistics.pstdev(scores), model, parameters))
        took = time.perf_counter() - began
        saved = hoisting_saved(manager, "digits")

    print(f"{'model':<15}{'right':>8}{'+/-':>7}   parameters")
    for mean, spread, model, parameters in sorted(table, key=lambda row: row[0], reverse=True):
        print(f"{model:<15}{mean:>8.2%}{spread:>7.2%}   {', '.join(f'{name}={value}' for name, value in parameters.items())}")
    print(f"{len(table) * chosen.folds} calls in {took:.1f} s. {saved}")


def hoisting_saved(manager: windlass.Manager, library: str) -> str:
    """What imports and context took where they ran, and would have taken more in each call."""
    (one,) = (one for one in manager.status()["libraries"] if one["name"] == library)
    return (
        f"Imports and context took {one['hoisted_seconds']:.1f} s on {one['starts']} start of the library; "
        f"in each call they would have taken {one['saved_seconds']:.0f} s more."
    )


if __name__ == "__main__":
    main()
