"""The bi-encoder: its loss, what it reads, its scores on any mesh, and from config to export."""

import functools
import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, read_jsonl, write_csv, write_jsonl
from ml_collections import ConfigDict
from small import SIZES, config, encoded, init

from bert_ft.checks import check
from bert_ft.data.batches import BatchPlan
from bert_ft.data.rows import Rows
from bert_ft.data.tokenizer import load_tokenizer
from bert_ft.errors import InputError
from bert_ft.evals.ranking import ranking_scores
from bert_ft.models.heads import Model
from bert_ft.models.hf import flatten
from bert_ft.tasks.matching import Matching, pair_loss
from bert_ft.train import sharding
from bert_ft.train.sharding import make_mesh, place, row_shards, shardings
from bert_ft.train.step import loss_and_gradient

SHARED = Path(os.environ.get("BERT_FT_SHARED", Path(__file__).parents[2] / "shared")) / "data"
OF_TASK = {"task__name": "matching", "data__text_pair": "answer", "train__batch_size": 8}

# ---- The loss.


def unit(*shape, seed=0):
    x = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def brute_loss(vectors, text, temperature, symmetric):
    """The definition, one logarithm of a sum of exponentials after the other, in float64."""
    vectors = vectors.astype(np.float64)
    count, pieces, _ = vectors.shape
    right = {}
    for q, a in text[:, :2]:
        right.setdefault(q, {q}).add(a)

    def cross(own, others):
        terms = np.exp(np.asarray([own, *others]) / temperature)
        return -np.log(terms[0] / terms.sum())

    total = 0.0
    for i in range(count):
        ask, own = vectors[i, 0], vectors[i, 0] @ vectors[i, 1]
        others = [
            ask @ vectors[j, p]
            for j in range(count)
            for p in range(1, pieces)
            if (j, p) != (i, 1) and text[j, p] not in right[text[i, 0]]
        ]
        one = cross(own, others)
        if symmetric:
            back = [
                vectors[j, 0] @ vectors[i, 1]
                for j in range(count)
                if j != i and text[i, 1] not in right[text[j, 0]]
            ]
            one = (one + cross(own, back)) / 2
        total += one
    return total


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("pieces", [2, 4])
def test_loss_by_its_definition(pieces, symmetric):
    vectors = unit(6, pieces, 16)
    text = np.random.default_rng(1).integers(0, 9, (6, pieces))
    # Two questions share an answer, one is asked twice, one is the answer to another.
    text[4, 1] = text[5, 0] + 100
    text[:, 0] += 100
    text[1, 1] = text[0, 1]
    text[3, 0] = text[2, 0]
    loss, _ = pair_loss(jnp.asarray(vectors), jnp.asarray(text), jnp.ones(6), 0.1, symmetric)
    assert float(loss.sum()) == pytest.approx(brute_loss(vectors, text, 0.1, symmetric), rel=1e-5)


def test_loss_is_torchs_cross_entropy_where_all_texts_differ():
    torch = pytest.importorskip("torch")
    vectors, text = unit(7, 3, 16), np.arange(21).reshape(7, 3)
    loss, hit = pair_loss(jnp.asarray(vectors), jnp.asarray(text), jnp.ones(7), 0.05, False)
    # sentence-transformers' multiple negatives ranking loss with its scale of 20.
    v = torch.tensor(vectors)
    scores = 20 * v[:, 0] @ torch.cat([v[:, 1], v[:, 2]]).T
    theirs = torch.nn.functional.cross_entropy(scores, torch.arange(7), reduction="none")
    np.testing.assert_allclose(loss, theirs.numpy(), rtol=1e-5)
    np.testing.assert_array_equal(hit, (scores.argmax(1) == torch.arange(7)).float().numpy())


def test_a_duplicate_is_no_negative():
    """A batch with its first pair twice has the losses of the batch with it once."""
    vectors, text = unit(4, 2, 16), np.arange(8).reshape(4, 2)
    again = np.concatenate([vectors, vectors[:1]]), np.concatenate([text, text[:1]])
    once = pair_loss(jnp.asarray(vectors), jnp.asarray(text), jnp.ones(4), 0.05, True)[0]
    twice = pair_loss(*map(jnp.asarray, again), jnp.ones(5), 0.05, True)[0]
    assert twice[0] == pytest.approx(float(once[0]), rel=1e-6)
    assert twice[4] == pytest.approx(float(once[0]), rel=1e-6)


def test_an_example_of_no_weight_is_no_negative():
    vectors, text = unit(4, 3, 16), np.arange(12).reshape(4, 3)
    weight = jnp.asarray([1.0, 1, 1, 0])
    loss, _ = pair_loss(jnp.asarray(vectors), jnp.asarray(text), weight, 0.05, True)
    fewer, _ = pair_loss(jnp.asarray(vectors[:3]), jnp.asarray(text[:3]), weight[:3], 0.05, True)
    np.testing.assert_allclose(loss[:3], fewer, rtol=1e-6)


# ---- The gradient does not depend on rows or devices.

DEVICES = 8


def gradient(packed=True, devices=1, pooling="mean", preset="replicate", fsdp=1):
    c = config(
        **OF_TASK, task__pooling=pooling, mesh__preset=preset, mesh__fsdp=fsdp, task__symmetric=True
    )
    mesh = make_mesh(c, jax.devices()[:devices])
    data = encoded(np.random.default_rng(3).integers(2, 20, 3 * 12), pieces=3, seed=3)
    text = np.arange(36, dtype=np.int32).reshape(12, 3)
    text[4, 1], text[5, 0] = text[1, 1], text[6, 0]
    data = type(data)(**{**data.__dict__, "fields": {"text": text}})
    plan = BatchPlan(data, 8, 1, 32, packed=packed, multiple=row_shards(mesh))
    task = Matching(c)
    made = Model(SIZES, task.head({}), jnp.float32)
    params = init(made)
    params = jax.device_put(params, shardings(params, mesh, preset))
    batch = place(functools.partial(plan.batch, 0), plan.shape(0), mesh)

    @functools.partial(jax.jit, out_shardings=sharding.replicated(mesh))
    def both(params, batch):
        rng = jax.random.key(5)
        return loss_and_gradient(made, task, params, batch, rng, 0.1, 1)

    metrics, found = both(params, batch)
    return float(metrics["loss"]), {k: np.asarray(v) for k, v in flatten(found).items()}


def same(one, other):
    (loss, found), (again, grad) = one, other
    assert again == pytest.approx(loss, abs=1e-5)
    assert found.keys() == grad.keys()
    for path, value in found.items():
        np.testing.assert_allclose(grad[path], value, atol=2e-5, err_msg=path)
    assert max(np.abs(v).max() for v in found.values()) > 1e-3


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_packed_is_padded(pooling):
    same(gradient(packed=True, pooling=pooling), gradient(packed=False, pooling=pooling))


def main():
    assert len(jax.devices()) == DEVICES
    one = gradient()
    for preset, fsdp in (("replicate", 1), ("fsdp", 4)):
        same(one, gradient(devices=DEVICES, preset=preset, fsdp=fsdp))
    print("same")


def test_eight_devices_are_one():
    here = Path(__file__).parent
    flags = f"--xla_force_host_platform_device_count={DEVICES} --xla_backend_optimization_level=0"
    path = f"{here}{os.pathsep}{here.parent}"
    done = subprocess.run(
        [sys.executable, "-c", "import test_matching; test_matching.main()"],
        cwd=here,
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and done.stdout.strip() == "same", done.stderr[-3000:]


# ---- What it reads.


@pytest.fixture(scope="module")
def tokenizer(world):
    return load_tokenizer(world.model)


def task(tmp_path: Path | None = None, **overrides) -> Matching:
    given = {"data__cache_dir": str(tmp_path or "unused"), **OF_TASK, **overrides}
    return Matching(config(**given))


def rows_of(*pairs, origin="a.csv", **more) -> Rows:
    text, answer = map(list, zip(*pairs, strict=True))
    columns = {"text": text, "answer": answer, **more}
    return Rows(columns, list(range(2, 2 + len(text))), origin)


PAIRS = (("film", "great"), ("plot", "dull"), ("film", "weak"), ("music", "great"))


def test_training_examples_are_pairs(tokenizer):
    made = task()
    data = made.encode_training(rows_of(*PAIRS), tokenizer, 16, made.fit(rows_of(*PAIRS)))
    assert data.pieces == 2 and len(data) == 4
    text = data.fields["text"]
    assert text[0, 0] == text[2, 0] and text[0, 1] == text[3, 1]
    assert len(np.unique(text)) == 6
    words = [
        tokenizer.convert_ids_to_tokens(data.tokens[a + 1 : b - 1])
        for a, b in zip(data.offsets, data.offsets[1:], strict=False)
    ]
    assert words == [[w] for pair in PAIRS for w in pair]


def test_hard_negatives_are_wrong_ones(tokenizer):
    lists = [
        ["great", "dull", {"text": "weak", "score": 1.0}, "stale"],
        ["weak", "plot", "dull", "clever"],
        ["dull", "stale", "great", "x"],
        ["dull", "weak"],
    ]
    made, rows = task(task__negatives=2), rows_of(*PAIRS, candidates=lists)
    text = made.encode_training(rows, tokenizer, 16, {}).fields["text"]
    number = {t: i for t, i in [("dull", text[1, 1]), ("weak", text[2, 1]), ("great", text[0, 1])]}
    assert text[0, 2] == number["dull"], "weak is an answer to film as well, by another row"
    assert text[1, 2] == number["weak"] and text[1, 3] not in number.values()
    assert text[1, 3] != text[1, 0], "the question is no answer to itself"
    assert list(text[3, 2:]) == [number["dull"], number["weak"]]
    with pytest.raises(InputError, match=r"a\.csv:2: 1 of its 2 candidates are wrong .*negatives"):
        short = rows_of(*PAIRS, candidates=[["great", "x"]] * 4)
        made.encode_training(short, tokenizer, 16, {})


def test_a_scored_set_embeds_each_text_once(tokenizer):
    data = task().encode(rows_of(*PAIRS), tokenizer, 16, {})
    assert len(data) == 3 + 3 and data.pieces == 1
    np.testing.assert_array_equal(data.aside["pairs"], [[0, 0], [0, 2], [1, 1], [2, 0]])
    assert list(data.row) == [0, 1, 3, 0, 1, 2]


def test_its_own_text_is_no_candidate_unless_it_is_right(tokenizer):
    data = task().encode(rows_of(("film", "plot"), ("plot", "film"), ("x", "x")), tokenizer, 16, {})
    assert list(data.aside["barred"]) == [1, 0, -1] or list(data.aside["barred"]) == [-1, -1, -1]
    similar = rows_of(("film", "plot"), ("music", "film"))
    assert list(task().encode(similar, tokenizer, 16, {}).aside["barred"]) == [1, -1]


def test_candidates_of_a_file(tokenizer, tmp_path):
    store = [{"answer": a} for a in ("stale", "great", "dull", "weak", "great")]
    path = write_csv(tmp_path / "store.csv", store)
    made = task(tmp_path, data__candidates=f"files:{path}")
    data = made.encode(rows_of(*PAIRS), tokenizer, 16, {})
    assert len(data) == 3 + 4
    assert list(data.row) == [0, 1, 3, -1, -1, -1, -1]
    asked = Rows({"text": ["film", "", "film"], "answer": ["", "x", "x"]}, None, "asked")
    new = made.encode_unlabelled(asked, tokenizer, 16, {})
    assert len(new) == 2 + 4 and not len(new.aside["pairs"])
    answers = made.answers({"embedding": unit(6, 8)}, new, asked)
    assert answers[0] == {**answers[2], "answer": ""} and "rank" not in answers[0]
    assert {c["text"] for c in answers[1]["candidates"]} == {"stale", "great", "dull", "weak"}
    with pytest.raises(InputError, match=r"a\.csv:2: its answer is not among the 4 candidates of"):
        made.encode(rows_of(("film", "clever")), tokenizer, 16, {})
    other = task(tmp_path, data__candidates=f"files:{write_csv(tmp_path / 'b.csv', store[:2])}")
    assert made.signature() != other.signature() != task().signature()


@pytest.mark.parametrize("name", ["train", "candidates"])
def test_answers_that_cannot_be_read_are_told(name, tokenizer, tmp_path):
    """Those that prediction reads beside the rows that it is for: predict.py says them."""
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "film", "answer": "great"}])
    path.write_text(path.read_text() + "{\n")
    uri = f"files:{path}?bad_rows=skip"
    made = task(tmp_path, **{f"data__{name}": uri})
    new = made.encode_unlabelled(Rows({"text": ["film"]}, None, "asked"), tokenizer, 16, {})
    assert len(new) == 2
    assert [line.partition(": ")[0] for line in new.skipped] == [f"{path}:2"]


def test_ties_of_equal_texts_rank_last(tokenizer):
    """Untrained and collapsed, a model has found nothing."""
    made = task()
    pairs = [(f"film {i}", f"great {i}") for i in range(9)]
    data = made.encode(rows_of(*pairs), tokenizer, 16, {})
    same = np.repeat(unit(1, 8), len(data), axis=0)
    assert made.score({"embedding": same}, data)["mrr"] == pytest.approx(1 / 9)
    right = np.concatenate([np.eye(9, dtype=np.float32)] * 2)
    scores = made.score({"embedding": right}, data)
    assert scores["mrr"] == scores["map"] == scores["recall@1"] == 1
    assert (scores["questions"], scores["candidates"]) == (9, 9)


def test_scores_by_brute_force(tokenizer):
    made, rng = task(), np.random.default_rng(0)
    pairs = [(f"film {rng.integers(20)}", f"great {rng.integers(30)}") for _ in range(60)]
    data = made.encode(rows_of(*pairs), tokenizer, 16, {})
    vectors = unit(len(data), 8)
    scores = made.score({"embedding": vectors}, data)
    asked, stored = (list(dict.fromkeys(x)) for x in zip(*pairs, strict=True))
    table = vectors[: len(asked)] @ vectors[len(asked) :].T
    query, rank = [], []
    for q, a in dict.fromkeys(pairs):
        line = table[asked.index(q)]
        query.append(asked.index(q))
        rank.append(1 + (line > line[stored.index(a)]).sum())
    assert ranking_scores(np.asarray(query), np.asarray(rank)).items() <= scores.items()
    sizes = made.sizes(data, scores)
    assert sizes == dict.fromkeys(scores, len(asked)) and len(asked) < len(pairs)
    answers = made.answers({"embedding": vectors}, data, rows_of(*pairs))
    for (q, a), answer in zip(pairs, answers, strict=True):
        order = np.argsort(-table[asked.index(q)])
        assert [c["text"] for c in answer["candidates"]] == [stored[i] for i in order[:10]]
        assert answer["rank"] == list(order).index(stored.index(a)) + 1
        assert answer["text"] == q and answer["prediction"] == stored[order[0]]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (rows_of(("a", "b"), ("c", "b")), "one answer only; at least 2"),
        (rows_of(("a", "b"), ("c", " ")), r"a\.csv:3: column 'answer' is blank"),
        (rows_of(("a", "b"), ("c", 3)), r"a\.csv:3: column 'answer' is 3, not a text"),
        (rows_of(("a", "b"), ("c", None)), r"a\.csv:3: no value in column 'answer'"),
    ],
)
def test_rows_that_cannot_be(rows, said):
    with pytest.raises(InputError, match=said):
        task().fit(rows)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"train__accumulate": 2}, "micro-batches would make fewer"),
        ({"train__batch_size": 1}, "train.batch_size is 1; accepted: 2 or more"),
        ({"data__text_pair": ""}, "data.text_pair is ''; accepted: the column of the right answer"),
        ({"data__text_pair": "label"}, "data.text_pair is 'label'; accepted: another name"),
        ({"data__text": "prediction"}, "data.text is 'prediction'; accepted: another name"),
        ({"task__temperature": 0.0}, "task.temperature is 0.0; accepted: more than 0"),
        ({"task__pooling": "max"}, "task.pooling is 'max'; accepted: 'mean' or 'cls'"),
        ({"task__name": "classification", "data__candidates": "x"}, "data.candidates is 'x'"),
        ({"task__name": "cross_encoder"}, "task.negatives is 0; accepted: 1 or more"),
    ],
)
def test_configs_that_cannot_be(overrides, said):
    with pytest.raises(InputError) as caught:
        check(matching_config(**overrides))
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_no_part_of_several_tasks():
    parts = json.dumps({"faq": {"task.name": "matching"}, "intent": {}})
    with pytest.raises(InputError, match="'faq': task.name is 'matching'; accepted: 'class"):
        check(config(task__name="multi", task__parts=parts, model__pretrained="m"))


def matching_config(**overrides) -> ConfigDict:
    return config(**{**OF_TASK, "data__train": "files:x", "model__pretrained": "m", **overrides})


# ---- The program.

SUBJECTS = ("film", "movie", "plot", "acting", "music", "scene")
ADJECTIVES = ("great", "superb", "moving", "awful", "dull", "stale", "fresh", "lovely", "weak")


def faq(seed: int, count: int = 40) -> list[dict[str, str]]:
    """Questions and answers in other words: what stands for what is the same in all rows, and must
    be learnt."""
    rng, rows = np.random.default_rng(seed), []
    for i in range(count):
        subject, adjective = rng.integers(len(SUBJECTS)), rng.integers(len(ADJECTIVES))
        asked, told = SUBJECTS[subject], SUBJECTS[subject - 1]
        rows.append(
            {
                "id": f"{seed}-{i}",
                "text": f"is the {asked} {ADJECTIVES[adjective]} to me?",
                "answer": f"{ADJECTIVES[adjective - 4]} was every {told}, once again.",
            }
        )
    return rows


@pytest.fixture(scope="module")
def trained(world, run_cli, tmp_path_factory):
    """A finished run on made-up questions, and its flags."""
    root = tmp_path_factory.mktemp("matching")
    rows = {"train": faq(0, 120), "test": faq(1)}
    sets = {name: write_jsonl(root / f"{name}.jsonl", rows[name]) for name in rows}
    flags = [
        *("--config.task.name=matching", "--config.data.text_pair=answer"),
        *("--config.task.label_names=", "--config.data.dev=", "--config.data.row_counts=1"),
        *(f"--config.data.{name}=files:{path}" for name, path in sets.items()),
    ]
    done = run_cli(root / "run", *flags, "--config.train.steps=80").ok()
    return done, flags, root


def test_a_run_learns_and_is_recorded(trained, run_here):
    done, flags, root = trained
    scores = {k: v["mean"] for k, v in done.result["eval"].items()}
    before = run_here(root / "none", *flags, "--config.train.steps=1").ok().result["eval"]
    assert scores["test/mrr"] > 0.6 > before["test/mrr"]["mean"] + 0.1
    assert scores["test/questions"] == len({r["text"] for r in faq(1)})
    answers = read_jsonl(done.workdir / "predictions" / "test.jsonl")
    assert [a["text"] for a in answers] == [r["text"] for r in faq(1)]
    assert all(len(a["candidates"]) == 10 for a in answers)
    unique = {a["text"]: 1 / a["rank"] for a in answers}
    assert np.mean(list(unique.values())) == pytest.approx(scores["test/mrr"], abs=1e-6)
    assert (done.workdir / "report.html").exists()


def test_other_candidates_are_noted(trained, run_here, tmp_path):
    done, flags, root = trained
    shutil.copytree(done.workdir, tmp_path / "run")
    more = write_jsonl(tmp_path / "more.jsonl", [*faq(1), *faq(2, 60)])
    other = (*flags, "--mode=eval", f"--config.data.candidates=files:{more}")
    result = run_here(tmp_path / "run", *other).ok().result
    assert result["scored_with"] == {"data.candidates": f"files:{more}"}
    assert result["eval"]["test/candidates"] != done.result["eval"]["test/candidates"]
    again = run_here(tmp_path / "run", *flags, "--mode=eval").ok().result
    assert "scored_with" not in again and again["eval"] == done.result["eval"]


def test_predict_lists_the_best_stored_answers(trained, run_here):
    done, flags, root = trained
    asked = write_jsonl(root / "new.jsonl", [{"id": 7, "text": "is the plot dull to me?"}, *faq(1)])
    out = root / "out.jsonl"
    words = [f"--config.predict.input={asked}", f"--config.predict.output={out}"]
    run_here(done.workdir, *flags, "--mode=predict", "--config.train.steps=80", *words).ok()
    lines = read_jsonl(out)
    assert [line.get("id") for line in lines] == [7, *(r["id"] for r in faq(1))]
    stored = {r["answer"] for r in [*faq(0, 120), *faq(1)]}
    for line in lines:
        texts = [c["text"] for c in line["candidates"]]
        scores = [c["score"] for c in line["candidates"]]
        assert len(texts) == len(set(texts)) == 10 and set(texts) <= stored
        assert scores == sorted(scores, reverse=True) and line["label"] == texts[0]
        assert line["truncated"] is False and "rank" not in line


def test_a_run_with_hard_negatives_goes_on_exactly(trained, run_here):
    """A second round on the lists of the first; from its middle it ends as without a stop."""
    done, flags, root = trained
    asked, lists = root / "train.jsonl", root / "lists.jsonl"
    words = [f"--config.predict.input={asked}", f"--config.predict.output={lists}"]
    run_here(done.workdir, *flags, "--mode=predict", "--config.train.steps=80", *words).ok()
    again = [
        *flags, f"--config.data.train=files:{lists}", "--config.task.negatives=2",
        f"--config.resume={done.workdir}", "--config.train.steps=6",
        "--config.checkpoint.every_steps=3", "--config.checkpoint.keep=9",
    ]  # fmt: skip
    whole = run_here(root / "whole", *again).ok()
    shutil.copytree(whole.workdir, root / "cut")
    for later in (root / "cut" / "checkpoints" / "6", root / "cut" / "best"):
        shutil.rmtree(later)
    cut = run_here(root / "cut", *again).ok()
    assert "own checkpoint of step 3" in cut.err
    assert cut.result["params_sha256"] == whole.result["params_sha256"]
    assert whole.result["params_sha256"] != done.result["params_sha256"]


def test_export_is_what_the_encoder_and_a_mean_say(trained, run_here):
    """transformers and a mean by hand, on the directory that sentence-transformers reads."""
    torch = pytest.importorskip("torch")
    import transformers

    done, flags, root = trained
    to = root / "export"
    words = ["--mode=export", f"--config.export.to={to}", "--config.train.steps=80"]
    run_here(done.workdir, *flags, *words).ok()
    modules = [m["type"] for m in json.loads((to / "modules.json").read_text())]
    assert [m.rpartition(".")[2] for m in modules] == ["Transformer", "Pooling", "Normalize"]
    assert json.loads((to / "1_Pooling" / "config.json").read_text())["pooling_mode_mean_tokens"]

    made = Matching(matching_config())
    texts = [r["text"] for r in faq(1)]
    stored = sorted({r["answer"] for r in faq(1)})
    model = transformers.AutoModel.from_pretrained(to).eval()
    by = transformers.AutoTokenizer.from_pretrained(to)

    def embed(texts):
        given = by(texts, padding=True, return_tensors="pt")
        with torch.no_grad():
            hidden = model(**given).last_hidden_state
        mask = given["attention_mask"][..., None].float()
        mean = (hidden * mask).sum(1) / mask.sum(1)
        return torch.nn.functional.normalize(mean, dim=1).numpy()

    if find_spec("sentence_transformers"):
        from sentence_transformers import SentenceTransformer

        theirs = SentenceTransformer(str(to), device="cpu")
        np.testing.assert_allclose(theirs.encode(texts), embed(texts), rtol=0, atol=1e-5)

    table = embed(texts) @ embed(stored).T
    for answer, line in zip(
        read_jsonl(done.workdir / "predictions" / "test.jsonl"), table, strict=True
    ):
        for candidate in answer["candidates"]:
            assert candidate["score"] == pytest.approx(
                line[stored.index(candidate["text"])], abs=1e-4
            )
    assert made.metric == "mrr"


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--config.data.candidates=files:{empty}", ("empty.jsonl", "empty")),
        ("--config.data.candidates=files:{test}?where=answer==x", ("leaves no row",)),
        ("--config.data.text_pair=reply", ("no column 'reply'", "answer")),
        ("--config.task.negatives=2", ("no column 'candidates'", "--mode=predict")),
    ],
)
def test_runs_that_cannot_be(trained, run_here, tmp_path, flag, said):
    _, flags, root = trained
    (tmp_path / "empty.jsonl").write_text("")
    flag = flag.format(empty=tmp_path / "empty.jsonl", test=root / "test.jsonl")
    run_here(tmp_path / "run", *flags, flag).refused(*said)


def shared(name: str) -> str:
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    return f"files:{folder}"


def short_run(run_here, workdir, variant, *flags):
    """4 steps by a tiny model, config and data as they are."""
    quick = ("--config.train.steps=4", "--config.train.batch_size=16", "--config.data.dev=")
    where = f"{ROOT}/configs/customer_service.py:{variant}"
    more = ("--config.log.progress=False", "--config.data.max_length=24")
    more += ("--config.data.row_counts=1",)  # programs to compile
    return run_here(workdir, *quick, *more, *flags, config=where).ok()


def test_covid_questions(world, run_here, tmp_path):
    """Real questions, several right answers to some, against all 398 English answers."""
    uri = shared("covid_faq") + "/faq_*?where=lang==en"
    done = short_run(
        run_here,
        tmp_path / "run",
        "faq",
        *(f"--config.data.{s}={uri}&split_by=question&split={s}" for s in ("train", "test")),
        f"--config.data.candidates={uri}",
        f"--config.model.pretrained={world.model}",
    )
    scores = {k: v["mean"] for k, v in done.result["eval"].items()}
    assert scores["test/questions"] == 27 and scores["test/candidates"] == 398
    answers = read_jsonl(done.workdir / "predictions" / "test.jsonl")
    best: dict[str, int] = {}
    for a in answers:
        best[a["question"]] = min(a["rank"], best.get(a["question"], 9999))
    assert np.mean([1 / r for r in best.values()]) == pytest.approx(scores["test/mrr"])


def test_chinese_questions_on_the_real_vocabulary(run_here, tmp_path):
    """The positive rows of a labelled file without a header, by a fresh model."""
    vocab = shared("vocabs").removeprefix("files:") + "/bert-base-chinese-vocab.txt"
    whole = Path(shared("atec_zh").removeprefix("files:")) / "atec_nlp_sim_train.csv"
    begin = whole.read_bytes().splitlines(keepends=True)[:5000]
    (tmp_path / "atec.csv").write_bytes(b"".join(begin))  # reading all of it takes a while
    uri = f"files:{tmp_path}/atec.csv?format=tsv&columns=id,question,other,label&where=label==1"
    done = short_run(
        run_here,
        tmp_path / "run",
        "faq=atec",
        *(f"--config.data.{s}={uri}&split_by=question&split={s}" for s in ("train", "test")),
        *("--config.data.candidates=", f"--config.model.tokenizer={vocab}"),
        *("--config.model.hidden_size=32", "--config.model.intermediate_size=64"),
        "--config.model.layers=2",
    )
    answers = read_jsonl(done.workdir / "predictions" / "test.jsonl")
    assert 60 < len(answers) < 200 and "花呗" in "".join(a["question"] for a in answers)
    assert all(1 <= a["rank"] <= len(answers) for a in answers)
    unknown = load_tokenizer(done.workdir / "model").unk_token_id
    ids = load_tokenizer(done.workdir / "model")([a["question"] for a in answers])["input_ids"]
    assert np.mean([i == unknown for line in ids for i in line]) < 0.02


def test_intents_of_requests(world, run_here, tmp_path):
    """ATIS, whose texts are lists of words; the rows that train can't know are left out."""
    folder = shared("atis")
    unseen = "atis_airfare%23atis_flight|atis_day_name|atis_flight.*%23atis_airline"
    done = short_run(
        run_here,
        tmp_path / "run",
        "intent",
        f"--config.data.train={folder}/train",
        f"--config.data.test={folder}/test?where=label!~{unseen}",
        f"--config.model.pretrained={world.model}",
    )
    assert done.result["eval"]["test/accuracy"]["n_examples"] == 893 - 5
