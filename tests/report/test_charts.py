"""Charts of many seeds."""

import numpy as np

from jaxmbrl.report import curves
from jaxmbrl.report.gathering import Group, Seed


def group(seeds):
    """Returns at two steps: the number of the seed, and twice that."""
    own = tuple(
        Seed(0, k, str(k), [{"env_steps": 10 * i, "seed": k, "wall_time": 1.0, "eval/return": i * k} for i in (1, 2)])
        for k in range(seeds)
    )
    return Group("q-learning", "q-learning", "cliff", (0,), own)


def test_quantiles_are_drawn_in_place_of_the_lines_of_many_seeds():
    few, many = (curves.chart([group(seeds)], "eval/return", "returns", "return") for seeds in (50, 1001))
    assert sum(series.thin for series in few.series) == 50
    thin = {series.name: series.y for series in many.series if series.thin}
    assert list(thin) == [f"{share}% of the seeds" for share in (5, 25, 75, 95)]
    np.testing.assert_allclose(list(thin.values()), np.outer([50, 250, 750, 950], [1, 2]))
    (mean,) = (series for series in many.series if series.name == "interquartile mean")
    np.testing.assert_allclose(mean.y, [500, 1000])
