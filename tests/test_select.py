"""What to label next: the maths against naive code, and the command on a trained run."""

import json
import re
import sys

import numpy as np
import pytest
from conftest import read_jsonl, reviews, write_jsonl
from hypothesis import given, settings
from hypothesis import strategies as st
from small import config

from bert_ft.errors import InputError
from bert_ft.evals import acquisition
from bert_ft.train.selection import Asked, select


def naive_k_centre(points, centres, n):
    chosen = []
    for _ in range(n):
        best, most = None, -1.0
        for i, point in enumerate(points):
            others = [*centres, *(points[j] for j in chosen)]
            near = min(np.linalg.norm(point - other) for other in others)
            if i not in chosen and near > most + 1e-9:
                best, most = i, near
        chosen.append(best)
    return chosen


def naive_badge(p, h, n, seed):
    """As in the authors' code: whole gradient embeddings, distances to all that were chosen."""
    g = []
    for probabilities, pooled in zip(p, h, strict=True):
        guess = np.zeros(len(probabilities))
        guess[np.argmax(probabilities)] = 1
        g.append(np.outer(probabilities - guess, pooled).ravel())
    g = np.asarray(g, np.float64)
    chosen, draws = [int(np.argmax(np.linalg.norm(g, axis=1)))], np.random.default_rng(seed)
    while len(chosen) < n:
        d = np.asarray([min(((x - g[c]) ** 2).sum() for c in chosen) for x in g])
        d[chosen] = 0
        chosen.append(int(draws.choice(len(g), p=d / d.sum())))
    return chosen, np.linalg.norm(g[chosen], axis=1)


def believed(count, classes=4, width=6, seed=0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (count, classes))
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return p.astype(np.float32), rng.normal(0, 1, (count, width)).astype(np.float32)


@pytest.mark.parametrize("seed", range(5))
def test_badge_is_that_of_whole_gradient_embeddings(seed):
    p, h = believed(40, seed=seed)
    chosen, lengths = acquisition.badge(p, h, 12, seed)
    wanted, longest = naive_badge(p, h, 12, seed)
    assert chosen.tolist() == wanted and len(set(wanted)) == 12
    np.testing.assert_allclose(lengths, longest, rtol=1e-6)


def test_badge_of_labels_that_are_there_or_not():
    """Whole gradients of the binary cross entropies by the last layer's weights."""
    rng = np.random.default_rng(2)
    p, h = rng.random((30, 5)), believed(30, seed=2)[1]
    chosen, lengths = acquisition.badge(np.stack([1 - p, p], axis=-1), h, 8, 2)
    g = np.einsum("nl,nh->nlh", p - (p > 0.5), h).reshape(30, -1)
    np.testing.assert_allclose(lengths, np.linalg.norm(g, axis=1)[chosen], rtol=1e-6)
    assert chosen[0] == np.linalg.norm(g, axis=1).argmax() and len({*chosen.tolist()}) == 8


def test_badge_of_sums_over_words_is_that_of_the_same_gradients():
    p, h = believed(30, seed=4)
    g = np.einsum("nc,nh->nch", p - np.eye(4)[p.argmax(axis=1)], h).reshape(30, -1)
    for mine, theirs in zip(
        acquisition.badge_of(g, 9, 3), acquisition.badge(p, h, 9, 3), strict=True
    ):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5)


def test_badge_takes_none_twice_where_all_are_alike():
    p, h = np.tile([[0.7, 0.3]], (5, 1)), np.ones((5, 3))
    assert sorted(acquisition.badge(p, h, 5, 0)[0]) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("centres", [1, 4])
def test_k_centre_is_greedy(centres):
    points = believed(30)[1]
    given_ = believed(centres, seed=9)[1]
    chosen, distances = acquisition.k_centre(points, given_, 10, 0)
    assert chosen.tolist() == naive_k_centre(points.astype(float), given_.astype(float), 10)
    assert (np.diff(distances) <= 1e-9).all(), "each one lies nearer than the one before"
    alike = acquisition.k_centre(np.ones((4, 2)), np.ones((1, 2)), 4, 0)
    assert sorted(alike[0]) == [0, 1, 2, 3] and (alike[1] == 0).all()
    alone = acquisition.k_centre(points, np.zeros((0, 6)), 5, 3)[0]
    assert alone.tolist()[1:] == naive_k_centre(points, [points[alone[0]]], 4)


def test_margin_and_entropy():
    from scipy.stats import entropy

    p = believed(20)[0]
    np.testing.assert_allclose(acquisition.entropy(p), entropy(p, axis=1), rtol=1e-5)
    gaps = [sorted(row)[-1] - sorted(row)[-2] for row in p.tolist()]
    np.testing.assert_allclose(acquisition.margin(p), 1 - np.asarray(gaps), rtol=1e-5)
    assert acquisition.entropy(np.asarray([1.0, 0.0])) == 0
    np.testing.assert_array_equal(acquisition.highest(np.asarray([1, 3, 3, 2]), 3), [1, 2, 3])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=8), st.sampled_from(["mean", "max"]))
def test_words_of_a_row_in_several_windows(row, over):
    rng = np.random.default_rng(0)
    row = np.sort(row)
    values, owned = rng.random((len(row), 5)), rng.integers(0, 2, (len(row), 5))
    found = acquisition.by_row(values, owned, row, 4, over)
    for r in range(4):
        own = [v for n in np.flatnonzero(row == r) for v in values[n][owned[n] > 0]]
        assert found[r] == pytest.approx(
            (np.mean(own) if over == "mean" else max(own)) if own else 0
        )


@pytest.fixture
def ask(world, cache, monkeypatch, capfd):
    """ask(workdir, *flags): bert_ft.select within this process -> (code, stdout, stderr)."""
    from absl import flags
    from absl.testing import flagsaver

    from bert_ft import select

    def asked(workdir, *words, config=world.config):
        argv = ["select", f"--config={config}", f"--workdir={workdir}", *words]
        monkeypatch.setattr(sys, "argv", argv)
        monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
        before = flagsaver.save_flag_values()
        capfd.readouterr()
        try:
            code = select.main(argv)
        finally:
            flagsaver.restore_flag_values(before, flags.FLAGS)
        return code, *capfd.readouterr()

    return asked


def test_rows_of_a_pool_are_chosen_and_written_whole(world, run_here, ask, tmp_path):
    run = tmp_path / "run"
    flags = ("--config.train.steps=8", "--config.data.row_counts=1", "--config.data.shots=20")
    run_here(run, *flags).ok()
    fresh = [{"id": f"p{i}", "text": r["text"] + " again"} for i, r in enumerate(reviews(40, 7))]
    trained = [{"id": f"t{i}", "text": r["text"]} for i, r in enumerate(reviews(160, 1))]
    pool = write_jsonl(tmp_path / "pool.jsonl", [*trained, *fresh, *fresh[:3]])
    flags = (*flags, f"--pool=files:{pool}")

    def chosen(*more):
        (tmp_path / "out.jsonl").unlink(missing_ok=True)
        code, out, err = ask(run, *flags, f"--out={tmp_path / 'out.jsonl'}", *more)
        assert code == 0, err
        return read_jsonl(tmp_path / "out.jsonl"), err

    rows, err = chosen("--n=12")
    assert [r["rank"] for r in rows] == list(range(1, 13))
    assert list(rows[0]) == ["id", "text", "score", "rank"]
    assert len({r["text"] for r in rows}) == 12
    labelled = {r["text"] for r in reviews(160, 1)}
    texts = [r["text"] for r in [*trained, *fresh, *fresh[:3]]]
    known, again = map(int, re.search(r"left out: (\d+) of .* and (\d+) that", err).groups())
    assert known >= 40 and again >= 3
    assert len(set(texts)) - len(labelled) < len(texts) - known - again < len(set(texts))

    run_here(run, *flags[:-1], "--mode=predict", f"--config.predict.input={pool}").ok()
    said = {r["text"]: r for r in read_jsonl(run / "predictions" / "pool.jsonl")}
    p = {text: sorted(r["probabilities"].values()) for text, r in said.items()}
    for row in rows:
        low, high = p[row["text"]]
        assert row["score"] == pytest.approx(1 - (high - low), abs=3e-6)
    assert [r["score"] for r in rows] == sorted((r["score"] for r in rows), reverse=True)

    entropies = {r["text"] for r in chosen("--n=12", "--by=entropy")[0]}
    assert entropies == {r["text"] for r in rows}, "of two labels both ask for the same"
    drawn = [r["id"] for r in chosen("--n=5", "--by=random")[0]]
    assert drawn == [r["id"] for r in chosen("--n=9", "--by=random")[0]][:5]
    assert drawn != [r["id"] for r in chosen("--n=5", "--by=random", "--seed=1")[0]]
    for by in ("badge", "k_centre"):
        found = chosen("--n=6", f"--by={by}")[0]
        assert len({r["id"] for r in found}) == 6 and all(r["score"] >= 0 for r in found)

    def refused(*more):
        code, out, err = ask(run, *flags, *more)
        assert code == 2 and "Traceback" not in err
        return err.strip().splitlines()[-1]

    assert "accepted: at most" in refused("--n=1000", "--by=random")
    assert "accepted: margin, entropy, badge" in refused("--n=1", "--by=chance")
    assert "--pool and --n" in refused()
    assert "accepted: 1 or more" in refused("--n=0")
    assert "config.nope is no key" in refused("--n=1", "--config.nope=1")
    assert "accepted: k_centre, random" in refused("--n=1", "--config.task.name=regression",
                                                  "--config.task.label_names=")  # fmt: skip
    write_jsonl(tmp_path / "pool.jsonl", [{"text": "a", "rank": 3}])
    assert "a column 'rank'" in refused("--n=1")
    code, out, err = ask(tmp_path / "nowhere", *flags, "--n=1")
    assert code == 2 and json.dumps("rank") not in err


LABELS = {"multilabel": lambda i: ["a", "b", "c"][: i % 4], "ordinal": lambda i: i % 3,
          "regression": lambda i: i / 7}  # fmt: skip


@pytest.mark.parametrize(
    ("task", "ways"),
    [
        ("multilabel", ("margin", "entropy", "badge", "k_centre")),
        ("ordinal", ("margin", "entropy", "k_centre")),
        ("regression", ("k_centre",)),
    ],
)
def test_rows_with_labels_of_other_kinds(task, ways, world, run_here, ask, tmp_path):
    rows = [{"text": r["text"], "label": LABELS[task](i)} for i, r in enumerate(reviews(60, 1))]
    texts = {r["text"] for r in rows}
    pool = [{"text": t} for t in {r["text"] + " again" for r in reviews(40, 7)} - texts]
    files = {n: write_jsonl(tmp_path / f"{n}.jsonl", v) for n, v in (("own", rows), ("pool", pool))}
    run, n = tmp_path / "run", len(pool)
    words = [f"--config.data.{name}=files:{files['own']}" for name in ("train", "dev", "test")]
    words += [f"--config.task.name={task}", "--config.task.label_names="]
    run_here(run, *words, "--config.train.steps=4").ok()
    asking = (*words, "--config.train.steps=4", f"--pool=files:{files['pool']}")
    found = {}
    for by in ways:
        code, _, err = ask(run, *asking, f"--n={n}", f"--by={by}", f"--out={tmp_path / by}")
        assert code == 0, err
        found[by] = {r["text"]: r["score"] for r in read_jsonl(tmp_path / by)}
        assert found[by].keys() == {r["text"] for r in pool}
    for by in {"margin", "entropy", "badge", "k_centre"} - {*ways}:
        code, _, err = ask(run, *asking, "--n=1", f"--by={by}")
        assert code == 2 and f"accepted: {', '.join(ways)}, random" in err
    if "margin" not in ways:
        return
    predict = f"--config.predict.input={files['pool']}"
    run_here(run, *words, "--config.train.steps=4", "--mode=predict", predict).ok()
    for row in read_jsonl(run / "predictions" / "pool.jsonl"):
        p = np.asarray([*row["probabilities"].values()])
        doubt = 1 - np.abs(2 * p - 1) if task == "multilabel" else 1 - np.ptp(np.sort(p)[-2:])
        assert found["margin"][row["text"]] == pytest.approx(np.mean(doubt), abs=5e-6)


def test_words_in_a_list_are_the_text_that_they_make(world, run_here, ask, tmp_path):
    rows = reviews(40, 1)
    words = [{**row, "text": row["text"].split()} for row in rows]
    own = f"--config.data.train=files:{write_jsonl(tmp_path / 'own.jsonl', words)}"
    run_here(tmp_path / "run", own, "--config.train.steps=2").ok()
    texts = [*(row["text"] for row in rows), "a text that is new"]
    pool = write_jsonl(tmp_path / "pool.jsonl", [{"text": text} for text in texts])
    out = tmp_path / "out.jsonl"
    asking = (own, f"--pool=files:{pool}", "--n=1", "--by=random", f"--out={out}")
    code, _, err = ask(tmp_path / "run", *asking)
    assert code == 0, err
    assert [row["text"] for row in read_jsonl(out)] == ["a text that is new"]


def test_rows_of_words(world, run_here, ask, tmp_path):
    """Long sentences have several windows; one has no words."""
    rows = [{"tokens": r["text"].split(), "tags": ["O"] * len(r["text"].split())}
            for r in reviews(40, 1)]  # fmt: skip
    rows[0]["tags"][0] = "B-X"
    pool = [{"id": i, "tokens": r["text"].split() * (1 + 8 * (i % 2))}
            for i, r in enumerate(reviews(12, 7))]  # fmt: skip
    pool.append({"id": 12, "tokens": []})
    files = {n: write_jsonl(tmp_path / f"{n}.jsonl", v) for n, v in (("own", rows), ("pool", pool))}
    words = [f"--config.data.{name}=files:{files['own']}" for name in ("train", "dev", "test")]
    words += ["--config.task.name=tagging", "--config.data.text=tokens", "--config.data.label=tags"]
    words += ["--config.task.label_names=", "--config.task.stride=8", "--config.train.steps=4"]
    run_here(tmp_path / "run", *words).ok()
    n = len({tuple(r["tokens"]) for r in pool})
    for by in ("margin", "entropy", "badge", "k_centre"):
        asking = (*words, f"--pool=files:{files['pool']}", f"--n={n}", f"--by={by}")
        code, _, err = ask(tmp_path / "run", *asking, f"--out={tmp_path / by}")
        assert code == 0, err
        chosen = read_jsonl(tmp_path / by)
        assert len({tuple(r["tokens"]) for r in chosen}) == n
        scores = {r["id"]: r["score"] for r in chosen}
        if by == "badge":  # the longest gradient first; that of no words is none
            assert chosen[0]["score"] == max(scores.values()) and scores[12] == 0
        elif by == "k_centre":
            assert [*scores.values()] == sorted(scores.values(), reverse=True)


def test_one_process_of_several_writes_and_speaks(world, ask, tmp_path, monkeypatch):
    def found(config, workdir, asked, say):
        say("scored")
        return [{"id": "a"}]

    monkeypatch.setattr("bert_ft.train.selection.select", found)
    pool = write_jsonl(tmp_path / "pool.jsonl", [{"id": "a", "text": "x"}])
    words = (f"--pool=files:{pool}", "--n=1", f"--out={tmp_path / 'out.jsonl'}")
    monkeypatch.setattr("jax.process_index", lambda: 1)
    assert ask(tmp_path / "run", *words) == (0, "", "")
    assert not (tmp_path / "out.jsonl").exists()
    monkeypatch.undo()
    monkeypatch.setattr("bert_ft.train.selection.select", found)
    code, out, err = ask(tmp_path / "run", *words)
    assert (code, err) == (0, "scored\n") and "1 rows by margin" in out
    assert read_jsonl(tmp_path / "out.jsonl") == [{"id": "a"}]
    code, _, err = ask(tmp_path / "run", *words)
    assert (
        code == 2 and "out.jsonl, which is there; accepted: the name of a file that is not" in err
    )
    assert read_jsonl(tmp_path / "out.jsonl") == [{"id": "a"}]
    code, _, err = ask(tmp_path / "run", *words, f"--out={tmp_path}/./pool.jsonl")
    assert code == 2 and "a file of --pool; give another name" in err
    assert read_jsonl(pool) == [{"id": "a", "text": "x"}]


def parts_of(tmp_path, **more):
    """A run of two parts on the same rows, which it alone names; `more` for the second part."""
    train = write_jsonl(tmp_path / "train.jsonl", [{"tokens": ["a"]}, {"tokens": ["b"]}])
    own = {"data.train": f"files:{train}"}
    parts = {"a": own, "b": {**own, "task.name": "tagging", **more}}
    return config(task__name="multi", task__parts=json.dumps(parts), data__text="tokens")


def test_a_pool_for_several_parts_on_the_same_rows(tmp_path):
    rows = [{"tokens": [word]} for word in "abcca"]
    pool = write_jsonl(tmp_path / "pool.jsonl", rows)
    pool.write_text(pool.read_text() + "{\n")
    said = []
    asked = Asked(f"files:{pool}?bad_rows=skip", 1, "random")
    chosen = select(parts_of(tmp_path), tmp_path, asked, said.append)
    assert [row["tokens"] for row in chosen] == [["c"]]
    assert said[0].startswith(f"skipped {pool}:6: ") and "5 rows; left out: 3 of" in said[1]


def test_no_pool_for_parts_with_sets_of_their_own(tmp_path):
    other = write_jsonl(tmp_path / "other.jsonl", [{"tokens": ["a"]}])
    made = parts_of(tmp_path, **{"data.train": f"files:{other}"})
    with pytest.raises(InputError, match="config.task.parts has parts with training sets of their"):
        select(made, tmp_path, Asked(f"files:{other}", 1, "random"), print)
