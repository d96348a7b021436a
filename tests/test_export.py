"""--mode=export: what it writes, that transformers reads it, that nothing wrong is left behind."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import read_jsonl, reviews, write_jsonl
from safetensors.numpy import load_file, save_file

from bert_ft.data.tokenizer import load_tokenizer
from bert_ft.models import hf
from bert_ft.train import agreement, card, export


@pytest.fixture(scope="module")
def trained(tmp_path_factory, run_cli):
    """A workdir of a few steps."""
    workdir = tmp_path_factory.mktemp("export") / "run"
    return run_cli(workdir, "--config.train.steps=6").ok().workdir


@pytest.fixture(scope="module")
def exported(trained, run_cli):
    to = trained.parent / "out"
    done = run_cli(trained, "--mode=export", f"--config.export.to={to}").ok()
    assert "BertForSequenceClassification of step 6" in done.out
    return to


def to(path: Path) -> str:
    return f"--config.export.to={path}"


def left_in(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_what_is_written(exported, trained):
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md", "export.json"} <= {
        *left_in(exported)
    }
    about = json.loads((exported / "config.json").read_text())
    assert about["architectures"] == ["BertForSequenceClassification"]
    assert about["id2label"] == {"0": "negative", "1": "positive"}
    assert about["label2id"] == {"negative": 0, "positive": 1}
    assert left_in(trained.parent) == ["out", "run"]


def test_card_says_scores_with_n_and_how_it_was_trained(exported, trained, world):
    text = (exported / "README.md").read_text()
    result = json.loads((trained / "result.json").read_text())
    score = result["eval"]["test/accuracy"]["mean"]
    assert f"| test/accuracy | {score:.4f} | 45 |" in text
    for said in (
        f"| train | `files:{world.train}` |",
        "`train.batch_size=8`",
        "`data.max_length=32`",
        "6 steps, seed 0",
        f"commit {result['git_commit'].rstrip('+')}",
        f"jax {result['versions']['jax']}",
        result["params_sha256"],
        "on 45 rows of `data.test`",
    ):
        assert said in text


def test_card_has_no_score_of_other_parameters(trained):
    digest = json.loads((trained / "result.json").read_text())["params_sha256"]
    result = export._result(trained, digest)
    assert result["eval"] and card._score_lines(result)[-1].startswith("| test/")
    other = {**result, "scored_with": {"data.test": "files:other.csv"}}
    said = "They are of an evaluation with data.test = `files:other.csv`."
    assert card._score_lines(other) == [*card._score_lines(result), "", said]
    assert export._result(trained, "0" * 64) == {}
    assert card._score_lines({}) == ["None is recorded of these parameters."]


def test_transformers_predicts_what_we_predicted(exported, trained):
    """From the text on, so through the exported tokenizer as well."""
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(exported).eval()
    tokenizer = AutoTokenizer.from_pretrained(exported)
    answers = read_jsonl(trained / "predictions" / "test.jsonl")
    with torch.no_grad():
        given = tokenizer([a["text"] for a in answers], padding=True, return_tensors="pt")
        p = torch.softmax(model(**given).logits, dim=1).numpy()
    ours = [list(a["probabilities"].values()) for a in answers]
    np.testing.assert_allclose(p, ours, atol=1e-5)
    names = [model.config.id2label[i] for i in p.argmax(axis=1)]
    assert names == [a["prediction"] for a in answers]


def test_who_may_read_the_rest_may_read_the_weights(exported):
    modes = {oct(file.stat().st_mode) for file in exported.iterdir() if file.is_file()}
    assert len(modes) == 1, modes


def test_transformers_cuts_a_text_where_we_do(exported):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(exported)
    assert tokenizer.model_max_length == 32  # config.data.max_length
    assert len(tokenizer("great " * 90, truncation=True)["input_ids"]) == 32


def test_the_card_is_of_the_training_whatever_the_exports_flags(trained, run_here, tmp_path):
    """A flag of the training that is left out is none of the export's business."""
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir)
    own = json.loads((workdir / "config.json").read_text())
    changed = {"train.seed": 5, "data.test": own["data.test"] + "?limit=20"}
    (workdir / "config.json").write_text(json.dumps(own | changed))
    run_here(workdir, "--mode=export", to(tmp_path / "out")).ok()
    text = (tmp_path / "out" / "README.md").read_text()
    assert "6 steps, seed 5" in text and f"`{changed['data.test']}`" in text
    assert json.loads((tmp_path / "out" / "export.json").read_text())["config"].items() >= (
        changed.items()
    )


def test_a_rating_far_from_nought_is_exported(world, run_here, tmp_path):
    """A mean of 1,000,000 is rounded in the written head by more than the outputs may differ."""
    rows = [{**row, "y": 1e6 + 200 * row["label"] + k % 7} for k, row in enumerate(reviews(60, 3))]
    path = write_jsonl(tmp_path / "far.jsonl", rows)
    flags = ["--config.task.name=regression", "--config.task.label_names=", "--config.data.label=y"]
    flags += [f"--config.data.{name}=files:{path}" for name in ("train", "test")]
    flags += ["--config.data.dev=", "--config.train.steps=4"]
    done = run_here(tmp_path / "run", *flags).ok()
    run_here(done.workdir, *flags, "--mode=export", to(tmp_path / "out")).ok()
    about = json.loads((tmp_path / "out" / "export.json").read_text())
    assert 0 < about["compared"]["largest_difference"]["bert_ft"] < 0.01


def test_an_export_is_a_start_with_its_head(exported, run_cli, tmp_path):
    done = run_cli(
        tmp_path / "run", f"--config.model.pretrained={exported}", "--config.train.steps=1"
    ).ok()
    assert "new: -" in done.err and "head: that of" in done.err


def test_exported_again_over_itself_but_over_nothing_else(trained, run_here, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    for _ in range(2):
        run_here(trained, "--mode=export", to(mine)).ok()
    assert left_in(tmp_path) == ["mine"]
    beside = mine / "more" / "notes.txt"
    beside.parent.mkdir()
    beside.write_text("of another's")
    run_here(trained, "--mode=export", to(mine)).refused(str(mine), "such as more/notes.txt")
    assert beside.read_text() == "of another's"
    shutil.rmtree(beside.parent)
    around = trained.parent / "x" / ".." / ".." / trained.parent.name  # where x is not
    run_here(trained, "--mode=export", to(around)).refused("holds the run itself")
    (mine / "export.json").unlink()
    run_here(trained, "--mode=export", to(mine)).refused(str(mine), "no earlier export")
    run_here(trained, "--mode=export", to(mine / "README.md")).refused("is a file")
    run_here(trained, "--mode=export", to(trained.parent)).refused(str(trained.parent))
    assert left_in(tmp_path) == ["mine"]


def test_refused_before_anything_is_read(run_here, tmp_path):
    run_here(tmp_path / "run", "--mode=export").refused("export.to", "a directory")
    run_here(tmp_path / "run", "--mode=export", to(tmp_path / "out")).refused("no trained model")
    assert left_in(tmp_path) == []


@pytest.mark.parametrize("what", ["weight", "missing", "labels", "positions", "tokenizer"])
def test_a_wrong_directory_is_not_left_behind(what, trained, run_here, tmp_path, monkeypatch):
    """Faults put into what is written, each of which must be seen before the rename."""
    true_save = hf.save

    def wrong(path, config, params, kind, *more):
        true_save(path, config, params, kind, *more)
        file = path / "model.safetensors"
        tensors = load_file(file)
        if what == "weight":
            tensors["bert.encoder.layer.0.output.dense.bias"][3] += 0.5
        elif what == "missing":
            del tensors["classifier.bias"]
        save_file(tensors, file, metadata={"format": "pt"})
        about = json.loads((path / "config.json").read_text())
        if what == "labels":
            about["id2label"] = {"0": "positive", "1": "negative"}
        elif what == "positions":
            about["layer_norm_eps"] = 0.1
        (path / "config.json").write_text(json.dumps(about))

    monkeypatch.setattr(hf, "save", wrong)
    if what == "tokenizer":
        reading = load_tokenizer

        def other(path):
            tokenizer = reading(path)
            if tmp_path in Path(path).parents:
                tokenizer.add_tokens(["il"])
            return tokenizer

        monkeypatch.setattr(agreement, "load_tokenizer", other)
    with pytest.raises(AssertionError, match="export: "):
        run_here(trained, "--mode=export", to(tmp_path / "out"))
    assert left_in(tmp_path) == []


def test_what_transformers_reads_otherwise_is_refused(trained, run_here, tmp_path, monkeypatch):
    """Our own loader agrees with itself here; only the other library can tell."""
    pytest.importorskip("torch")
    true = agreement.transformers_outputs

    def off(*args):
        return {k: v + 2e-4 for k, v in true(*args).items()}

    monkeypatch.setattr(agreement, "transformers_outputs", off)
    with pytest.raises(AssertionError, match="as transformers reads"):
        run_here(trained, "--mode=export", to(tmp_path / "out"))
    assert left_in(tmp_path) == []


def test_a_difference_that_is_nan_is_one(exported):
    batch = {"segments": np.ones((2, 4), np.int32)}
    right = {"logits": np.zeros((2, 3), np.float32)}
    with pytest.raises(AssertionError, match="logits"):
        agreement._difference("x", "sequence", right, {"logits": np.full((2, 3), np.nan)}, batch)
    with pytest.raises(AssertionError, match="shape"):
        agreement._difference("x", "sequence", right, {"logits": np.zeros((2, 4))}, batch)
    of_tokens = {"logits": np.zeros((2, 4, 3), np.float32)}
    off = {"logits": of_tokens["logits"].copy()}
    off["logits"][1, 3] = 9  # a padding's
    batch["segments"][1, 3] = 0
    assert agreement._difference("x", "token", of_tokens, off, batch) == 0
    # The same shapes, but of texts: each is compared.
    with pytest.raises(AssertionError, match="differ by"):
        agreement._difference("x", "sequence", of_tokens, off, batch)
