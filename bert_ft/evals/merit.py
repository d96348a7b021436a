"""Which of two scores is the better one."""

import math

_LOWER = frozenset({"loss", "nll", "ece", "brier", "rmse", "mae", "perplexity"})


def lower_is_better(metric: str) -> bool:
    """Of a score's name, which may have the part it is of behind or before a '/', and behind
    '_cold_' whose unseen ones it is of (tasks/recommend.py)."""
    return any(name.partition("_cold_")[0] in _LOWER for name in metric.split("/"))


def merit(metric: str, value: float | None) -> float:
    """A score by which runs are chosen: the more the better, whatever the metric; one that is not
    defined (NaN, or a record's null) is worse than any other."""
    if value is None or math.isnan(value):
        return -math.inf
    return -value if lower_is_better(metric) else value


def defined(value: float) -> float | None:
    """None for NaN."""
    return None if math.isnan(value) else value
