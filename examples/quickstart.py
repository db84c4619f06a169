"""The README's ten lines."""

import windlass


def mean_of_normals(seed: int) -> float:
    import random
    import statistics  # both hoisted: loaded once per worker, not once per call

    chance = random.Random(seed)
    return statistics.fmean(chance.gauss() for _ in range(10_000))


if __name__ == "__main__":
    with windlass.Executor("local") as pool:
        results = list(pool.map(mean_of_normals, range(200)))
    print(f"{len(results)} results; their mean is {sum(results) / len(results):+.4f}")
