"""Moved to rlpre.evaluation.stats; this shim keeps the old signatures until nothing imports it."""  # ALIAS

import numpy as np

from rlpre.evaluation import stats as _stats
from rlpre.evaluation.stats import *  # noqa: F403
from rlpre.evaluation.stats import Interval, iqm


def mean(scores):
    return np.asarray(scores.mean(axis=(-2, -1)))


def geometric_mean(scores):
    return np.asarray(np.exp(mean(np.log(scores))))


def interval(scores, rng=None, statistic=iqm, logarithmic=False) -> Interval:
    if statistic is iqm:
        return _stats.iqm_interval(scores)
    if statistic is geometric_mean:
        return _stats.geometric_mean_interval(scores[:, 0])
    return _stats.mean_interval(scores[:, 0], logarithmic)


def steps_ratio(baseline, treated, budget, rng=None):
    return _stats.steps_ratio(baseline, treated, budget)


def overall_ratio(tasks, rng=None):
    return _stats.overall_ratio(tasks)


def performance_profile(scores, thresholds, rng=None):
    return tuple(_stats.mean_interval((scores > threshold).mean(1)) for threshold in thresholds)
