"""Data flows one way: a module imports only from the lines above its own, and this is the list."""

import ast
from pathlib import Path

import pytest
from conftest import ROOT

# One line a layer: its modules may not import each other, only what stands above.
LAYERS = """
errors method_knobs method_tables
paths data.defaults evals.merit
config data.mixing evals.metrics evals.page data.columns data.packing data.wheels train.checksum
varying
space
parts trials task_checks mesh_rules train.chips evals.plots
evals.entities evals.ranking evals.squad
data.words data.texts data.windows data.rows data.pieces data.epochs data.word_lists
data.tokenizer
data.noise data.shots evals.acquisition
data.augment evals.attack
method_checks
data_checks
model_checks
checks
command_line evals.ranking_by_user
data.annotated data.hubs
data.squad
data.formats
data.joins
data.sources
data.encode
data.prefetch data.prompts data.unlabelled
data.batches
data.masking
models.ops models.crf models.positions models.taps
models.attention models.noise
models.bert
models.heads models.families models.lstm models.stored_heads
models.hf models.multi models.fusion models.shallow
methods.method
models.peft methods.weights methods.lora methods.ema methods.swa methods.shifts
methods.fgm methods.pgd methods.freelb methods.smart
methods.rdrop methods.focal methods.contrastive methods.mixup methods.distil
methods.pseudo methods.uda methods.hints
methods.rates methods.sam methods.noise_scale
methods.freezing methods.modules
methods.adalora
methods.registry
evals.spans evals.paired evals.trials_page search
evals.search_page
evals.judge
evals.answers
evals.report
compare
tasks.schemes tasks.sequence tasks.divergence tasks.candidates tasks.span_candidates tasks.ranking
tasks.tagged tasks.classification tasks.regression tasks.features
tasks.tagging tasks.masked tasks.span tasks.multilabel tasks.ordinal tasks.joint tasks.parted
tasks.weighting
tasks.matching tasks.cross_encoder tasks.recommend
tasks.multi
tasks.registry
train.sharding train.knobs train.refuse train.meaning train.sinks train.quiet train.progress
train.phases
train.processes train.watchdog train.backend train.collectives train.optim
train.barriers train.preemption train.lock
train.store train.writer train.footprint
train.checkpoint
train.step train.proposals
train.training_set
train.system train.evaluate train.fleet
train.adapted train.initial
train.start train.record train.advice train.cost train.agreement
train.gather train.adapters
train.finish train.card train.guard
train.selection train.predict
train.export train.teacher
train.loop
train.halving
train.group
train.held
train.ensemble
train.trial_results
train.trial_training
train.trial_loop
preflight
main
select sweep
"""
RANK = {name: i for i, line in enumerate(LAYERS.split("\n")) for name in line.split()}
# The input pipeline and the record of a run work where JAX does not.
WITHOUT_JAX = (
    "errors",
    "paths",
    "config",
    "checks",
    "task_checks",
    "method_knobs",
    "method_checks",
    "method_tables",
    "data_checks",
    "mesh_rules",
    "command_line",
    "compare",
    "search",
    "space",
    "trials",
    "varying",
    "data.",
    "evals.",
    "main",
)
LONGEST = 320


def modules() -> dict[str, Path]:
    package = ROOT / "bert_ft"
    paths = [p for p in sorted(package.rglob("*.py")) if p.name != "__init__.py"]
    return {".".join(p.relative_to(package).with_suffix("").parts): p for p in paths}


def imported(path: Path, top: bool = False) -> set[str]:
    """Names of the modules that a file imports; with `top`, not those inside its functions."""
    tree = ast.parse(path.read_text())
    found = set()
    for node in tree.body if top else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_every_module_has_its_place():
    assert set(modules()) == set(RANK), set(modules()) ^ set(RANK)


@pytest.mark.parametrize("name", modules())
def test_imports_point_upwards(name):
    own = [n for n in imported(modules()[name]) if n.startswith("bert_ft.")]
    ours = {n.removeprefix("bert_ft.") for n in own} & set(RANK)
    wrong = {other for other in ours if RANK[other] >= RANK[name]}
    assert not wrong, f"bert_ft.{name} imports {sorted(wrong)}, which stand beside or below it"


@pytest.mark.parametrize("name", [n for n in modules() if n.startswith(WITHOUT_JAX)])
def test_no_jax_without_need(name):
    if name in ("command_line", "main"):  # they import it once the command line is known to be good
        found = imported(modules()[name], top=True)
    else:
        found = imported(modules()[name])
    packages = {module.partition(".")[0] for module in found}
    assert not packages & {"jax", "jaxlib", "flax", "optax", "orbax"}


def test_only_one_module_knows_orbax():
    users = {
        n for n, path in modules().items() if any(m.startswith("orbax") for m in imported(path))
    }
    assert users == {"train.store"}


@pytest.mark.parametrize("name", modules())
def test_a_file_has_one_job(name):
    assert name.rpartition(".")[2] not in ("utils", "util", "helpers", "common", "misc")
    lines = len(modules()[name].read_text().splitlines())
    assert lines <= LONGEST, f"{name} has {lines} lines"


def test_packages_are_only_places():
    for path in (ROOT / "bert_ft").rglob("__init__.py"):
        assert not imported(path), f"{path} imports: `import bert_ft` should cost nothing"
