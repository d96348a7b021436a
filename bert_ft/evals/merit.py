"""Which of two scores is the better one."""

import math

_LOWER = frozenset({"loss", "nll", "ece", "brier", "rmse", "mae", "perplexity"})


def lower_is_better(metric: str) -> bool:
    """Of a score's name, which may have the part it is of behind or before a '/', behind '_cold_'
    whose unseen ones it is of (tasks/recommend.py), and behind 'f1/' a type, of any name."""
    names = metric.split("/")
    return "f1" not in names and any(n.partition("_cold_")[0] in _LOWER for n in names)


def merit(metric: str, value: float | None) -> float:
    """A score by which runs are chosen: the more the better, whatever the metric; one that is not
    defined (NaN, or a record's null) is worse than any other."""
    if value is None or math.isnan(value):
        return -math.inf
    return -value if lower_is_better(metric) else value


def beats(value: float, best: float) -> bool:
    """Whether a later `merit` takes the best one's place: it is more, or neither is defined, where
    the later one has at least been trained for longer."""
    return value > best or best == -math.inf


def undefined(metric: str, step: int) -> str:
    """What is said where a metric that parameters are kept by is not defined."""
    return (
        f"WARNING: dev/{metric} is not defined at step {step}, so eval.keep_best keeps these "
        "parameters only until it is; see config.eval.metric"
    )


def defined(value: float) -> float | None:
    """None for NaN."""
    return None if math.isnan(value) else value
