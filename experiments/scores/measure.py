"""The scores in the configs' docstrings: the learning rate chosen on dev, then three seeds.

python -m experiments.scores.measure [--configs …] [--rates 5e-5 1.5e-4 5e-4] [--seeds 0 1 2]

A config of ours as it stands, but for its learning rate: the first seed runs with each of `--rates`
and the others with the one whose score on dev, by the config's own metric, is the best. For that a
config without a dev set, or without another set to score, gets a tenth of its training rows as dev;
with one rate there is nothing to choose, and the config's own sets stay. Runs what scores.jsonl
does not hold yet with the same settings and versions, one run at a time, then prints all scores of
test, or of dev where there is no other set. A run that fails is noted, and the others go on.
"""

from __future__ import annotations

import argparse
import functools
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bert_ft.evals.merit import merit
from configs.customer_service import BANKING
from configs.medical import COMPLAINTS
from experiments.attempts import Attempts
from experiments.lines import SHOW, measured, spread, versions
from experiments.parity.tasks import Task, divided
from experiments.runs import by_best_rate, folder_name, result_of, settings_of

HERE = Path(__file__).parent
RATES = (5e-5, 1.5e-4, 5e-4)
FRESH_RATES = (5e-4, 1e-3, 2e-3)  # of a model that begins from nothing
FRESH = ("configs/chinese.py", "configs/chinese.py:cluener", "configs/customer_service.py:faq=atec")
NO_SHARES = (  # not in per cent
    *("loss", "nll", "rmse", "mae", "perplexity", "words", "unseen"),
    *("questions", "pairs", "candidates", "users", "n"),
)

SHARED = "../shared/data"
ALEXA = f"{SHARED}/amazon_alexa_5class/amazon_alexa.tsv"


def glue(name: str, options: str) -> dict[str, tuple[tuple[str, str], ...]]:
    """A task of GLUE, whose development set is the test set here."""
    files = f"files:{SHARED}/glue_{name}/{{}}.tsv?quoting=none{options}"
    sets = (*divided(files.format("train")), ("data.test", files.format("dev")))
    return {f"configs/glue.py:{name}={SHARED}/glue_{name}": sets}


CONFIGS: dict[str, tuple[tuple[str, Any], ...]] = {
    "configs/customer_service.py": (),
    "configs/customer_service.py:banking77": divided(BANKING.format("train")),
    "configs/customer_service.py:faq": (),
    "configs/customer_service.py:faq=atec": (),
    "configs/medical.py": (),
    "configs/medical.py:complaints": divided(COMPLAINTS.format("train")),
    "configs/opinion.py": (),
    "configs/opinion.py:agree75": (),
    "configs/opinion.py:agree66": (),
    "configs/opinion.py:agree50": (),
    "configs/chinese.py": (),
    "configs/chinese.py:cluener": (),
    f"configs/rating.py:ordinal={ALEXA}": (),
    f"configs/rating.py:regression={ALEXA}": (),
    f"configs/rating.py:classes={ALEXA}": (),
    "configs/recommend.py": (),
    "configs/recommend.py:reviews": (),
    **glue("cola", "&columns=source,label,star,sentence"),
    **glue("stsb", ""),
    "configs/ner.py:files": (),
    "configs/mlm.py:medical": (),
    "configs/qa.py:files": (),
}


def one(name: str, rate: float, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """The line of a run, from the results or made and added to them."""
    sets = () if args.rates and len(args.rates) == 1 else CONFIGS[name]
    task = Task(name, "", (*sets, ("train.learning_rate", rate), ("eval.report", False)))
    settings = settings_of(task, seed)
    what = {"name": name, "seed": seed, "config": settings, "versions": versions()}

    def run() -> dict[str, Any]:
        workdir = args.workdirs / folder_name(f"{name}-{rate:g}-{seed}")
        result = result_of(task, seed, workdir)
        shutil.rmtree(workdir)  # checkpoints are large
        kept = ("metric", "steps", "params_sha256", "git_commit", "devices", "goodput")
        scores = {key: value["mean"] for key, value in result["eval"].items()}
        counts = {key: value["n_examples"] for key, value in result["eval"].items()}
        line = {"rate": rate, "scores": scores, "n": counts}
        return line | {key: result[key] for key in kept if key in result}

    return measured(args.results, what, run, args.show)


def runs_of(name: str, args: argparse.Namespace, attempts: Attempts) -> list[dict[str, Any]]:
    """A line a seed, all with the rate that is best on dev for the first."""

    def tried(rate: float, seed: int) -> dict[str, Any] | None:
        make = functools.partial(one, name, rate, seed, args)
        return attempts.of(f"{name}, {rate:g}, seed {seed}", make)

    def worth(line: Mapping[str, Any]) -> float:
        return merit(line["metric"], line["scores"][f"dev/{line['metric']}"])

    rates = args.rates or (FRESH_RATES if name in FRESH else RATES)
    return by_best_rate(tried, rates, args.seeds, worth)


def table(runs: dict[str, Sequence[dict[str, Any]]]) -> str:
    """All scores of test, or of dev where there is no other set, in Markdown."""
    out = ["| config | rate | steps | score | n | |", "|---|---|---|---|---|---|"]
    for name, lines in runs.items():
        first = lines[0]
        tested = [k for k in first["scores"] if k.startswith("test/")]
        for key in tested or first["scores"]:
            values = [line["scores"][key] for line in lines]
            if None in values:
                continue
            raw = key.rpartition("/")[2].partition("_cold_")[0] in NO_SHARES
            shown = spread(values, 1, 3) if raw else f"{spread(values)} %"
            cells = [name, f"{first['rate']:g}", first["steps"], key, first["n"][key], shown]
            out.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(out)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("--configs", nargs="+", choices=list(CONFIGS), default=list(CONFIGS))
    p.add_argument("--rates", type=float, nargs="+", help="for all configs")
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    p.add_argument("--results", type=Path, default=HERE / "scores.jsonl")
    p.add_argument("--workdirs", type=Path, default=Path("runs/scores"))
    p.add_argument("--show", action="store_true", help=SHOW)
    args = p.parse_args()
    attempts = Attempts()
    found = {name: runs_of(name, args, attempts) for name in args.configs}
    seeds = ", ".join(map(str, args.seeds))
    print(table({name: lines for name, lines in found.items() if lines}))
    print(f"\nMean ± standard deviation over seeds {seeds}.")
    attempts.end()


if __name__ == "__main__":
    main()
