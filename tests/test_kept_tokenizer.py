"""What a start asks of a tokenizer comes from the cache, and is what the tokenizer itself says."""

import copy
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, environment, write_bert

from bert_ft.data import tokenizer as module
from bert_ft.data.tokenizer import KeptTokenizer, load_tokenizer, tokenizer_hash
from bert_ft.errors import InputError

TEXTS = ["The film is great.", "its acting, in parts"]


@pytest.fixture(params=["a directory", "a vocabulary"])
def path(request, tmp_path):
    model = write_bert(tmp_path / "model")
    return model if request.param == "a directory" else model / "vocab.txt"


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def unread(monkeypatch):
    """From here on to read a tokenizer is an error."""
    monkeypatch.setattr(module, "load_tokenizer", lambda path: pytest.fail(f"{path} was read"))


@pytest.mark.parametrize("start", ["first", "second"])
def test_it_is_what_transformers_reads(path, tmp_path, monkeypatch, start):
    true = load_tokenizer(path)
    true.save_pretrained(tmp_path / "true")
    if start == "second":
        KeptTokenizer(path, tmp_path / "cache")
        unread(monkeypatch)
    kept = KeptTokenizer(path, tmp_path / "cache")
    kept.save_pretrained(tmp_path / "kept")
    assert len(kept) == len(true) and tokenizer_hash(kept) == tokenizer_hash(true)
    assert contents(tmp_path / "kept") == contents(tmp_path / "true") != {}


def test_an_entry_that_has_lost_its_files_is_made_again(path, tmp_path):
    KeptTokenizer(path, tmp_path / "cache").save_pretrained(tmp_path / "before")
    [entry] = (tmp_path / "cache" / "tokenizers").iterdir()
    for file in (entry / "files").iterdir():
        file.unlink()
    KeptTokenizer(path, tmp_path / "cache").save_pretrained(tmp_path / "after")
    assert contents(tmp_path / "after") == contents(tmp_path / "before") != {}


def test_it_reads_what_it_does_not_keep(path, tmp_path):
    true = load_tokenizer(path)
    for kept in (KeptTokenizer(path, tmp_path / "cache") for _ in range(2)):
        assert kept(TEXTS)["input_ids"] == true(TEXTS)["input_ids"]
        assert kept.mask_token_id == true.mask_token_id
        assert kept.decode(kept(TEXTS[0])["input_ids"]) == true.decode(true(TEXTS[0])["input_ids"])
        assert copy.copy(kept)(TEXTS)["input_ids"] == true(TEXTS)["input_ids"]


def test_use_does_not_change_what_is_saved(path, tmp_path):
    """transformers writes the truncation of the last call into tokenizer.json."""
    kept = KeptTokenizer(path, tmp_path / "cache")
    kept.save_pretrained(tmp_path / "before")
    kept(TEXTS, truncation=True, max_length=5)
    kept.save_pretrained(tmp_path / "after")
    assert contents(tmp_path / "before") == contents(tmp_path / "after")


def test_another_vocabulary_is_another_tokenizer(path, tmp_path):
    before = KeptTokenizer(path, tmp_path / "cache")
    if path.is_file():
        path.write_text(path.read_text() + "movies\n")
    else:
        file = path / "tokenizer.json"
        state = json.loads(file.read_text())
        state["model"]["vocab"]["movies"] = len(state["model"]["vocab"])
        file.write_text(json.dumps(state))
    after = KeptTokenizer(path, tmp_path / "cache")
    assert len(after) == len(before) + 1
    assert tokenizer_hash(after) == tokenizer_hash(load_tokenizer(path)) != tokenizer_hash(before)


def test_the_same_files_elsewhere_are_the_same_tokenizer(tmp_path, monkeypatch):
    path = write_bert(tmp_path / "model")
    first = KeptTokenizer(path, tmp_path / "cache")
    shutil.copytree(path, tmp_path / "copy")
    unread(monkeypatch)
    assert tokenizer_hash(KeptTokenizer(tmp_path / "copy", tmp_path / "cache")) == first.sha256


def test_a_cache_that_cannot_be_written_is_done_without(path, tmp_path):
    (tmp_path / "cache").write_text("no directory")
    kept, true = KeptTokenizer(path, tmp_path / "cache"), load_tokenizer(path)
    kept.save_pretrained(tmp_path / "kept")
    assert tokenizer_hash(kept) == tokenizer_hash(true)
    assert tokenizer_hash(load_tokenizer(tmp_path / "kept")) == tokenizer_hash(true)


def test_a_disk_that_is_full_is_done_without(path, tmp_path, monkeypatch):
    """tokenizers raises a bare Exception then, not an OSError."""
    true = load_tokenizer(path)

    def full(self, directory, **_):
        Path(directory).mkdir()
        raise Exception("No space left on device (os error 28)")

    monkeypatch.setattr(type(true), "save_pretrained", full)
    kept = KeptTokenizer(path, tmp_path / "cache")
    assert tokenizer_hash(kept) == tokenizer_hash(true)
    assert contents(tmp_path / "cache") == {} and not [*(tmp_path / "cache/tokenizers").iterdir()]
    with pytest.raises(OSError, match="No space left"):
        kept.save_pretrained(tmp_path / "kept")


def test_what_is_saved_has_permissions_of_its_own(path, tmp_path):
    KeptTokenizer(path, tmp_path / "cache")
    for file in [p for p in (tmp_path / "cache").rglob("*") if p.is_file()]:
        file.chmod(0o400)
    (to := tmp_path / "kept").mkdir(mode=0o755)
    KeptTokenizer(path, tmp_path / "cache").save_pretrained(to)
    (to / "config.json").write_text("{}")
    assert to.stat().st_mode & 0o777 == 0o755
    assert all(p.stat().st_mode & 0o200 for p in to.iterdir())


def test_the_side_on_which_texts_are_cut_counts(tmp_path):
    path = write_bert(tmp_path / "model")
    before = KeptTokenizer(path, tmp_path / "cache").sha256
    own = path / "tokenizer_config.json"
    own.write_text(json.dumps({**json.loads(own.read_text()), "truncation_side": "left"}))
    after = KeptTokenizer(path, tmp_path / "cache")
    assert after.truncation_side == "left" and after.sha256 != before
    assert tokenizer_hash(load_tokenizer(path)) == after.sha256


def test_a_directory_without_one_is_refused_at_once(tmp_path):
    with pytest.raises(InputError, match="no tokenizer there"):
        KeptTokenizer(tmp_path, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_second_start_does_without_transformers(world, run_cli, cache, tmp_path):
    run_cli(tmp_path / "first").ok()
    code = (
        "import sys; from bert_ft import main; code = main.main(sys.argv); "
        "print(code, 'transformers' in sys.modules)"
    )
    words = [f"--config={world.config}", f"--workdir={tmp_path / 'second'}"]
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        env=environment(cache),
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines()[-1] == "0 False", done.stdout + done.stderr
    assert contents(tmp_path / "first" / "model") == contents(tmp_path / "second" / "model")
