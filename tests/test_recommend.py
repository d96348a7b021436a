"""Recommendation: columns, pairs, the draw of unknown ids, layouts and devices, a whole run."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, World, read_jsonl, write_jsonl
from small import SIZES, config, encoded, init

from bert_ft.checks import check
from bert_ft.data.batches import BatchPlan
from bert_ft.data.sources import Rows, open_source
from bert_ft.data.tokenizer import load_tokenizer
from bert_ft.errors import InputError
from bert_ft.evals.ranking_by_user import by_user
from bert_ft.models import hf
from bert_ft.models.fusion import unknown_ids
from bert_ft.models.heads import Model
from bert_ft.models.noise import make_noise
from bert_ft.tasks import features
from bert_ft.tasks.recommend import Recommend
from bert_ft.train import optim
from bert_ft.train.sharding import AXES, make_mesh, place, replicated, row_shards
from bert_ft.train.step import Programs, TrainState, loss_and_gradient, train_step

SHARED = Path(__file__).parents[2] / "shared" / "data" / "movielens_100k"
DEVICES, STEPS = 8, 20
RNG = np.random.default_rng(0)


def rows_of(**columns):
    count = len(next(iter(columns.values())))
    return Rows({k: list(v) for k, v in columns.items()}, list(range(2, count + 2)), "set.csv")


def settings_of(objective="rating", **more):
    usual = {
        "task__name": "recommend",
        "task__objective": objective,
        "task__user": "user",
        "task__item": "item",
        "task__text_columns": "title,genres",
        "task__categorical": "user,item,gender",
        "task__numeric": "age",
        "task__range": "1,5",
        "task__table_width": 4,
        "task__fusion_width": 8,
        "task__id_dropout": 0.3,
        "task__table_rate": 2.0,
        "data__label": "rating",
    }
    return config(**{**usual, **more})


def ratings(count=40, users=6, items=9, seed=0):
    """Rows whose titles and genres are their item's, and whose age and gender their user's."""
    rng = np.random.default_rng(seed)
    user, item = rng.integers(0, users, count), rng.integers(0, items, count)
    return rows_of(
        user=[f"u{u}" for u in user],
        item=[f"i{i}" for i in item],
        title=[f"the {'abcdefghijklmnop'[i]} film" for i in item],
        genres=["great" if i % 2 else "dull, weak" for i in item],
        gender=["MF"[u % 2] for u in user],
        age=[20 + int(u) for u in user],
        time=list(range(count)),
        rating=rng.integers(1, 6, count).tolist(),
    )


def made(task, fitted):
    return Model(SIZES, task.head(fitted))


# Columns.


def test_categories_are_numbers_and_what_is_new_is_unknown():
    rows = rows_of(a=["x", "7", "x", "b"], b=[1, 2, 1, True])
    known = features.fit_categories(rows, ["a", "b"])
    assert known == {"a": ["7", "b", "x"], "b": ["1", "2", "true"]}
    new = rows_of(a=[7, "X", "b"], b=["2", "1", "3"])
    assert features.categories(new, known, ["b", "a"]).tolist() == [[2, 1], [1, 0], [0, 2]]
    with pytest.raises(InputError, match=r"'b', with training's: '1' and '1.0' are one number"):
        features.categories(rows_of(a=["x"], b=[1.0]), known, ["b"])
    with pytest.raises(InputError, match="'x' and 'x ' differ by blanks only; .* each category"):
        features.fit_categories(rows_of(a=["x", "x "]), ["a"])


def test_numbers_are_standardised_by_the_training_rows():
    rows = rows_of(time=["881250949", "881250950", 881250954], flag=[0, 0, 0])
    fitted = features.fit_numbers(rows, ["time", "flag"])
    x = features.numbers(rows, fitted, ["time", "flag"])
    assert x.dtype == np.float32 and (x[:, 1] == 0).all()
    np.testing.assert_allclose(x[:, 0], (np.asarray([0, 1, 5]) - 2) / np.std([0, 1, 5]), rtol=1e-6)
    assert features.numbers(rows_of(flag=[1]), fitted, ["flag"]).tolist() == [[0.0]]
    with pytest.raises(InputError, match=r"set.csv:3: age is ''; accepted: a finite number"):
        features.fit_numbers(rows_of(age=[1, ""]), ["age"])


@pytest.mark.parametrize("seed", range(5))
def test_rated_pairs_are_of_one_user_and_both_kinds(seed):
    rng = np.random.default_rng(seed)
    user, liked = rng.integers(0, 12, 60) * 3, rng.random(60) < 0.5
    better, worse = features.rated_pairs(user, liked, 20)
    assert (user[better] == user[worse]).all() and liked[better].all() and not liked[worse].any()
    mixed = [u for u in set(user) if 0 < liked[user == u].sum() < (user == u).sum()]
    wanted = [i for i in np.flatnonzero(liked) if user[i] in mixed]
    assert sorted(set(better)) == wanted and (np.unique(better, return_counts=True)[1] == 20).all()
    # Every one that could be drawn is, and the same rows give the same pairs.
    assert set(worse) == {i for i in np.flatnonzero(~liked) if user[i] in mixed}
    again = features.rated_pairs(user, liked, 20)
    assert (again[0] == better).all() and (again[1] == worse).all()


@pytest.mark.parametrize("seed", range(5))
def test_unseen_pairs_are_items_that_the_user_lacks(seed):
    rng = np.random.default_rng(seed)
    user, item = rng.integers(0, 6, 60) + 4, rng.integers(0, 9, 60) * 2
    user, item = np.append(user, [99] * 9), np.append(item, np.arange(9) * 2)  # has seen all
    liked = rng.random(69) < 0.5
    better, worse = features.unseen_pairs(user, item, liked, 30)
    seen = {u: set(item[user == u]) for u in set(user)}
    full = {u for u in seen if len(seen[u]) == 9}
    assert 99 in full and not set(user[better]) & full
    assert sorted(set(better)) == [i for i in np.flatnonzero(liked) if user[i] not in full]
    for u in set(user) - full:
        if (liked & (user == u)).any():
            drawn = set(item[worse[user[better] == u]])
            assert drawn == set(item) - seen[u]


def test_a_row_with_another_item():
    rows = ratings()
    better, worse = np.asarray([0, 1, 2, 3]), np.asarray([9, 8, 7, 6])
    got = features.with_other_item(rows, "user", "item", ["title", "genres"], better, worse)
    for column in rows.columns:
        of = worse if column in ("item", "title", "genres") else better
        assert got.columns[column] == [rows.columns[column][i] for i in of], column
    unique = rows_of(user="aab", item="xyz", title=["p", "q", "r"], age=[10, 10, 20])
    ends = np.asarray([0]), np.asarray([2])
    got = features.with_other_item(unique, "user", "item", ["title"], *ends, ["age"]).columns
    assert got == {"user": ["a"], "item": ["z"], "title": ["r"], "age": [10]}
    with pytest.raises(InputError, match="no user and no item has two rows.*column 'title' is"):
        features.with_other_item(unique.take([1, 2]), "user", "item", ["title"], *ends)
    # An item that is its own text, without a pair ('').
    ends = np.asarray([0]), np.asarray([1])
    got = features.with_other_item(unique.take([1, 2]), "user", "item", ["item", ""], *ends)
    assert (got.columns["user"], got.columns["item"]) == (["a"], ["z"])
    reviews = rows_of(user="aabb", item="xyxy", review=["good", "bad", "fine", "dull"])
    with pytest.raises(InputError, match="'review' differs between rows of one item.*'rated'"):
        features.with_other_item(reviews, "user", "item", ["review"], better[:2], worse[:2] - 7)


# The task.


@pytest.fixture(scope="module")
def tokenizer(world: World):
    return load_tokenizer(world.model)


def test_what_is_encoded(tokenizer):
    task, rows = Recommend(settings_of()), ratings()
    fitted = json.loads(json.dumps(task.fit(rows)))
    data = task.encode_training(rows, tokenizer, 32, fitted)
    assert data.pieces == 1 and data.fields["categories"].shape == (40, 1, 3)
    np.testing.assert_allclose(data.fields["numbers"].mean(), 0, atol=1e-6)
    wanted = f"{rows.columns['title'][0]} | {rows.columns['genres'][0]}"
    assert data.tokens[: data.offsets[1]].tolist() == tokenizer(wanted)["input_ids"]
    new = rows_of(
        user=["u1", "u77", "u1"], item=["i1", "i1", "i77"], title="abc", genres="xyz",
        gender="MFM", age=[20, 21, 22],
    )  # fmt: skip
    data = task.encode(new, tokenizer, 32, fitted)
    assert data.aside["cold"].tolist() == [[False, False], [True, False], [False, True]]
    assert data.aside["group"][0] == data.aside["group"][2] != data.aside["group"][1]
    assert "label" not in data.fields and (data.fields["categories"][1, 0] > 0).tolist() == [
        False, True, True,
    ]  # fmt: skip


@pytest.mark.parametrize("worse", ["rated", "unseen"])
def test_pairs_of_rows_are_examples_of_two_sequences(tokenizer, worse):
    task, rows = Recommend(settings_of("bpr", task__worse=worse, task__pairs=2)), ratings()
    fitted = task.fit(rows)
    data, plain = (
        make(rows, tokenizer, 32, fitted) for make in (task.encode_training, task.encode)
    )
    assert data.pieces == 2 and len(data) > 20 and data.fields["categories"].shape[1:] == (2, 3)
    by_item = {}
    for i, item in enumerate(plain.fields["categories"][:, 0, 1]):
        by_item[int(item)] = plain.tokens[plain.offsets[i] : plain.offsets[i + 1]].tolist()
    seen = set(zip(rows.columns["user"], rows.columns["item"], strict=True))
    for e in range(len(data)):
        (user, item, _), (user_too, other, _) = data.fields["categories"][e]
        assert user == user_too and float(rows.columns["rating"][data.row[e]]) >= 4
        for k, i in enumerate((item, other)):
            a, b = data.offsets[2 * e + k : 2 * e + k + 2]
            assert data.tokens[a:b].tolist() == by_item[int(i)]
        known = fitted["categories"]
        pair = known["user"][user - 1], known["item"][other - 1]
        assert (pair in seen) == (worse == "rated")


def test_there_must_be_a_pair():
    task = Recommend(settings_of("bpr"))
    rows = rows_of(
        user="ab", item="xy", title="xy", genres="xy", gender="MF", age=[1, 2], rating=[5, 1]
    )
    with pytest.raises(
        InputError, match=r"set.csv: no pair to rank: no user has a row with rating"
    ):
        task.encode_training(rows, None, 32, task.fit(rows))


def test_scores_and_answers():
    task = Recommend(settings_of())
    label = np.float32([5, 1, 4, 2, 5, 3])
    value = np.float32([4.5, 2, 1, 3, 4.9, 3.5])
    group = np.asarray([0, 0, 0, 1, 1, 2])
    cold = np.asarray([[0, 0], [0, 1], [0, 1], [1, 0], [1, 1], [0, 0]], bool)
    fields = {"label": label, "target": label}
    data = encoded([3] * 6)
    data = data.__class__(
        **{**vars(data), "fields": fields, "fitted": {"mean": 0.0, "scale": 1.0},
           "aside": {"group": group, "cold": cold}}
    )  # fmt: skip
    predicted = {"value": value}
    scores = task.score(predicted, data)
    assert scores["rmse"] == pytest.approx(np.sqrt(np.mean((label - value) ** 2)))
    # User 0: liked rows are at 1 and 3 of three (4.5 | 2 | 1), so half the pairs are right.
    assert scores["auc"] == pytest.approx((0.5 + 1) / 2) and scores["users_one_kind"] == 1
    assert scores["mrr@10"] == 1 and scores["users_none_liked"] == 1
    gained = (1 + 1 / np.log2(4)) / (1 + 1 / np.log2(3))
    assert scores["ndcg@10"] == pytest.approx((gained + 1) / 2)
    assert (scores["n_cold_user"], scores["n_cold_item"]) == (2, 3)
    apart = cold[:, 1]
    wanted = np.sqrt(np.mean((label[apart] - value[apart]) ** 2))
    assert scores["rmse_cold_item"] == pytest.approx(wanted)
    assert scores["auc_cold_item"] == 0 and scores["auc_cold_user"] == 1
    sizes = task.sizes(data, scores)
    assert (sizes["ndcg@10"], sizes["auc"]) == (2, 2) and "rmse" not in sizes  # over the rows
    assert (sizes["rmse_cold_item"], sizes["mrr@10_cold_item"], sizes["auc_cold_item"]) == (3, 2, 1)
    ranked = Recommend(settings_of("bpr")).score(predicted, data)
    assert "rmse" not in ranked and ranked["auc"] == scores["auc"]
    assert "rmse_cold_item" not in ranked and ranked["n_cold_item"] == 3

    rows = rows_of(user="aaabbc", item="uvwxyz", title="uvwxyz", genres="uvwxyz")
    answers = task.answers(predicted, data, rows)
    assert [a["rank"] for a in answers] == [1, 2, 3, 2, 1, 1]
    assert answers[4]["unknown"] == ["user", "item"] and answers[0]["unknown"] == []
    lines = [{"label": a.pop("prediction"), **a} for a in answers]
    lists = task.lists(lines)
    assert [one["user"] for one in lists] == ["a", "b", "c"]
    assert [r["item"] for one in lists for r in one["ranked"]] == list("uvwyxz")
    assert "(label -)" in task.sentence({"prediction": 3.0, **{k: v for k, v in answers[0].items() if k != "label"}})  # fmt: skip  # noqa: E501


@pytest.mark.parametrize(
    "change, words",
    [
        ({"rating": 6}, r"^set.csv:4: rating is 6; accepted: a number from 1 to 5"),
        ({"age": "old"}, r"^set.csv:4: age is 'old'; accepted: a finite number"),
        ({"gender": None}, r"^set.csv:4: no value in column 'gender'"),
    ],
)
def test_bad_values_are_named_by_their_line(change, words):
    rows = ratings()
    for column, value in change.items():
        rows.columns[column][2] = value
    with pytest.raises(InputError, match=words):
        Recommend(settings_of()).fit(rows)


@pytest.mark.parametrize("knob", ["user", "item", "text_columns", "categorical", "numeric"])
def test_columns_that_there_are_not(knob):
    task = Recommend(settings_of(**{f"task__{knob}": "genders"}))
    with pytest.raises(InputError, match="set.csv: no column 'genders'; there are: user, item"):
        task.fit(ratings())


@pytest.mark.parametrize(
    "knobs, words",
    [
        (
            {"task__objective": "ranking"},
            "task.objective is 'ranking'; accepted: 'rating' or 'bpr'",
        ),
        ({"task__objective": "bpr", "task__user": ""}, "task.user is ''"),
        ({"task__name": "regression"}, "it is for recommend"),
        (
            {"task__name": "multi", "task__parts": '{"a": {"task.name": "recommend"}, "b": {}}'},
            "'a': task.name is 'recommend'; accepted: 'classification' or",
        ),
        ({"task__id_dropout": 1.0}, "task.id_dropout is 1.0; accepted: 0 or more and less than 1"),
        ({"task__table_rate": 0.0}, "task.table_rate is 0.0"),
        ({"task__pairs": 0}, "task.pairs is 0"),
        ({"task__item": "rank"}, "task.item is 'rank'; accepted: another name"),
        ({"task__text_columns": "title,label"}, "task.text_columns is 'label'; accepted: another"),
    ],
)
def test_knobs_are_checked(knobs, words):
    good = {"data__train": "files:x.csv", "model__tokenizer": "vocab.txt"}
    check(settings_of(**good))
    with pytest.raises(InputError, match=words):
        check(settings_of(**good, **knobs))


# The model: what is drawn, and that layouts and devices change nothing.


@functools.cache
def drawn_data(objective):
    """Random sequences with categories and numbers: 48 ratings or pairs."""
    task = Recommend(settings_of(objective))
    pieces = 1 if objective == "rating" else 2
    rng = np.random.default_rng(3)
    data = encoded(rng.integers(2, 17, 48 * pieces), pieces, seed=4)
    fields = {
        "categories": rng.integers(1, 6, (48, pieces, 3)).astype(np.int32),
        "numbers": rng.normal(size=(48, pieces, 1)).astype(np.float32),
    }
    if objective == "rating":
        fields["target"] = rng.normal(size=48).astype(np.float32)
    known = {name: list("abcde") for name in ("user", "item", "gender")}
    fitted = {"mean": 3.0, "scale": 1.0, "categories": known, "numbers": {"age": [0.0, 1.0]}}
    return task, data.__class__(**{**vars(data), "fields": fields, "fitted": fitted})


def plan_of(data, packed=True, accumulate=1, **more):
    return BatchPlan(
        data, 8, STEPS, 32, seed=1, packed=packed, accumulate=accumulate, at_most=1, **more
    )


def unknown_of(batch, step, rate=0.3, columns=3):
    key = jax.random.fold_in(jax.random.key(5), step)
    noise = make_noise(key, 0.0, batch, SIZES)
    return np.asarray(unknown_ids(noise, batch, columns, rate))


@pytest.mark.parametrize("objective", ["rating", "bpr"])
def test_unknown_ids_are_drawn_by_step_example_and_column(objective):
    _, data = drawn_data(objective)
    pieces = data.pieces
    by_step = []
    for step in range(STEPS):
        packed = unknown_of(plan_of(data).batch(step), step)
        padded = unknown_of(plan_of(data, packed=False, multiple=8).batch(step), step)
        assert (packed == padded).all()
        four = plan_of(data, accumulate=4).batch(step)
        parts = [unknown_of({k: v[a] for k, v in four.items()}, step) for a in range(4)]
        assert (np.concatenate(parts) == packed).all()
        assert (packed.reshape(8, pieces, 3) == packed.reshape(8, pieces, 3)[:, :1]).all()
        by_step.append(packed[::pieces])
    drawn = np.asarray(by_step)
    assert abs(drawn.mean() - 0.3) < 0.06 and len({x.tobytes() for x in drawn}) == STEPS
    np.testing.assert_allclose(drawn.mean(axis=(0, 1)), 0.3, atol=0.12)
    together = (drawn[..., 0] & drawn[..., 1]).mean()
    assert abs(together - 0.09) < 0.06, "columns are not independent"


@functools.cache
def gradient_program(objective, accumulate, noisy):
    task, data = drawn_data(objective)
    model = made(task, data.fitted)

    @jax.jit
    def run(params, batch, rate):
        key = jax.random.key(5) if noisy else None
        return loss_and_gradient(model, task, params, batch, key, rate, accumulate)

    return run, init(model)


def gradient(objective, packed, accumulate, rate, noisy=True):
    run, params = gradient_program(objective, accumulate, noisy)
    batch = plan_of(drawn_data(objective)[1], packed, accumulate).batch(3)
    metrics, out = run(params, batch, rate)
    return metrics, hf.flatten(out)


@pytest.mark.parametrize("objective", ["rating", "bpr"])
@pytest.mark.parametrize("rate", [0.0, 0.1])
def test_a_steps_gradient_however_it_is_laid_out(objective, rate):
    """With unknown ids in it, model.dropout on and off."""
    metrics, packed = gradient(objective, True, 1, rate)
    for packs, accumulate in ((False, 1), (True, 4))[: 2 if objective == "bpr" else 1]:
        other_metrics, other = gradient(objective, packs, accumulate, rate)
        for name in metrics:
            np.testing.assert_allclose(metrics[name], other_metrics[name], rtol=0, atol=1e-5)
        for path in packed:
            np.testing.assert_allclose(packed[path], other[path], rtol=0, atol=2e-5, err_msg=path)
    for path in ("top/table_0/embedding", "top/mix/kernel", "top/table_2/embedding"):
        assert np.abs(packed[path]).max() > 1e-3, f"{path} hardly has a gradient to compare"
    assert np.abs(packed["top/table_1/embedding"][0]).max() > 0, "'unknown' is not trained"


def test_without_a_draw_unknown_has_no_gradient():
    _, out = gradient("rating", True, 1, 0.0, noisy=False)
    assert not np.any(out["top/table_1/embedding"][0]) and np.any(out["top/table_1/embedding"][1:])


def test_bpr_by_its_formula():
    task, data = drawn_data("bpr")
    batch = plan_of(data).batch(0)
    score = RNG.normal(size=(8, 2)).astype(np.float32)
    total, count, extra = task.loss({"score": jnp.asarray(score)}, batch)
    wanted = -sum(np.log(1 / (1 + np.exp(-(a - b)))) for a, b in score.astype(float))
    np.testing.assert_allclose(float(total), wanted, rtol=1e-5)
    assert count == 8 and float(extra["pair_accuracy"]) == (score[:, 0] > score[:, 1]).sum()


def test_scores_of_the_head_by_hand():
    """Each part of the formula, in NumPy, from the pooled vectors of the model itself."""
    task, data = drawn_data("bpr")
    model = made(task, data.fitted)
    params, batch = init(model), plan_of(data).batch(0)
    from functools import partial

    from bert_ft.models.heads import SequenceHead

    plain = Model(SIZES, partial(SequenceHead, SIZES.hidden_size))
    identity = {"kernel": jnp.eye(SIZES.hidden_size), "bias": jnp.zeros(SIZES.hidden_size)}
    top = {"pooler": params["top"]["pooler"], "classifier": identity}
    with jax.default_matmul_precision("highest"):
        pooled = plain.apply({"params": {"encoder": params["encoder"], "top": top}}, batch)
        got = model.apply({"params": params}, batch)["score"]
    p, rate = jax.tree.map(np.asarray, params["top"]), 2.0
    ids, numbers = batch["categories"].reshape(-1, 3), batch["numbers"].reshape(-1, 1)
    tables = [p[f"table_{c}"]["embedding"][ids[:, c]] * rate for c in range(3)]
    wide = sum(p[f"wide_{c}"]["embedding"][ids[:, c], 0] * rate for c in range(3))
    x = np.concatenate([pooled["logits"], *tables, numbers], axis=1)
    x = np.asarray(jax.nn.gelu(x @ p["mix"]["kernel"] + p["mix"]["bias"], approximate=False))
    wanted = (x @ p["score"]["kernel"] + p["score"]["bias"])[:, 0] + wide
    assert got.shape == (8, 2) and np.abs(wide).max() > 0.1
    np.testing.assert_allclose(np.ravel(got), wanted, rtol=1e-4, atol=1e-4)


def a_step(task, model, c):
    optimizer, schedule = optim.make_optimizer(c, STEPS), optim.schedule(c, STEPS)

    def run(state, batch):
        return train_step(
            state, batch, model=model, task=task, optimizer=optimizer, schedule=schedule,
            rate=0.0, seed=3, accumulate=1,
        )  # fmt: skip

    return run, optimizer


def train(objective, devices):
    """Losses of some steps with model.dropout 0, where only ids are drawn."""
    task, data = drawn_data(objective)
    c, model = config(train__learning_rate=3e-3), made(task, data.fitted)
    mesh = make_mesh(config(mesh__data=8))
    if devices == 1:
        array = np.asarray(jax.devices()[:1]).reshape((1,) * len(AXES))
        mesh = jax.sharding.Mesh(array, AXES, axis_types=(jax.sharding.AxisType.Auto,) * len(AXES))
    run, optimizer = a_step(task, model, c)
    params = jax.device_put(init(model), replicated(mesh))
    state = jax.device_put(
        TrainState(jnp.int32(0), params, optimizer.init(params)), replicated(mesh)
    )
    places = jax.tree.map(lambda x: x.sharding, state)
    programs = Programs(run, (places, replicated(mesh)), donate=True)
    plan = plan_of(data, multiple=row_shards(mesh))
    losses = []
    for i in range(STEPS):
        batch = place(functools.partial(plan.batch, i), plan.shape(i), mesh)
        programs.compile(state, batch)
        state, metrics = programs(state, batch)
        losses.append(float(metrics["loss"]))
    return losses


def main():
    assert len(jax.devices()) == DEVICES
    out = {o: [train(o, 1), train(o, DEVICES)] for o in ("rating", "bpr")}
    print(json.dumps(out))


@pytest.fixture(scope="module")
def on_devices():
    here = Path(__file__).parent
    flags = f"--xla_force_host_platform_device_count={DEVICES} --xla_backend_optimization_level=0"
    given = {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": f"{here}{os.pathsep}{ROOT}"}
    done = subprocess.run(
        [sys.executable, "-c", "import test_recommend; test_recommend.main()"],
        cwd=here, env={**os.environ, **given}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.mark.parametrize("objective", ["rating", "bpr"])
def test_eight_devices_do_what_one_does(objective, on_devices):
    one, eight = on_devices[objective]
    assert np.mean(one[-5:]) < np.mean(one[:5]), "nothing was learnt"
    np.testing.assert_allclose(one, eight, rtol=0, atol=1e-4)


def test_a_resumed_run_draws_what_an_undisturbed_one_draws():
    """With model.dropout 0 the ids are all that is drawn; the state has no generator in it."""
    task, data = drawn_data("rating")
    model = made(task, data.fitted)
    run, optimizer = a_step(task, model, config(train__learning_rate=3e-3))
    run, plan, params = jax.jit(run), plan_of(data), init(model)
    state = TrainState(jnp.int32(0), params, optimizer.init(params))
    for i in range(6):
        if i == 3:
            middle = jax.tree.map(np.array, state)
        state, _ = run(state, plan.batch(i))
    again = jax.tree.map(jnp.asarray, middle)
    for i in range(3, 6):
        again, _ = run(again, plan.batch(i))
    jax.tree.map(np.testing.assert_array_equal, state.params, again.params)
    # The row of 'unknown' is trained with the draw, and not without.
    without = Recommend(settings_of(task__id_dropout=0.0))
    other, _ = a_step(without, made(without, data.fitted), config())
    still, _ = jax.jit(other)(
        TrainState(jnp.int32(0), params, optimizer.init(params)), plan.batch(0)
    )
    assert task.draws and not without.draws
    assert np.any(unknown_moments(state)) and not np.any(unknown_moments(still))


def unknown_moments(state):
    """Adam's first moments of 'unknown' items."""
    adam = next(s for s in state.opt_state if hasattr(s, "mu"))
    return adam.mu["top"]["table_1"]["embedding"][0]


# Whole runs.


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """Twelve users' first 25 ratings of ua.base and their ten of ua.test, joined as JSON lines."""
    if not SHARED.is_dir():
        pytest.skip(f"no {SHARED}: real ratings are not here")
    sys.path.insert(0, str(ROOT / "configs"))
    try:
        from recommend import RATINGS
    finally:
        sys.path.pop(0)
    folder = tmp_path_factory.mktemp("films")
    options = RATINGS.replace("../shared/data/movielens_100k", str(SHARED))
    out = {}
    for name, most in (("ua.base", 25), ("ua.test", 10)):
        lines, seen = [], {}
        for line in (SHARED / name).read_text().splitlines():
            user = line.split("\t")[0]
            seen[user] = seen.get(user, 0) + 1
            if int(user) <= 12 and seen[user] <= most:
                lines.append(line)
        (folder / name).write_text("\n".join(lines) + "\n")
        out[name] = f"files:{folder / name}?{options}"
    return out


def flags_of(world, films, *more):
    return [
        f"--config={ROOT}/configs/recommend.py",
        f"--config.data.train={films['ua.base']}",
        f"--config.data.test={films['ua.test']}",
        f"--config.model.pretrained={world.model}",
        *("--config.data.row_counts=1", "--config.train.batch_size=16", "--config.train.steps=60"),
        *("--config.train.learning_rate=0.001", "--config.task.table_rate=10"),
        *(
            "--config.task.table_width=8",
            "--config.task.fusion_width=16",
            "--config.log.progress=0",
        ),
        *more,
    ]


@pytest.mark.parametrize("objective", ["rating", "bpr"])
def test_films_from_ratings_to_ranked_lists(run_here, world: World, films, tmp_path, objective):
    workdir = tmp_path / "run"
    config_flag, *flags = flags_of(world, films, f"--config.task.objective={objective}")
    config_file = config_flag.partition("=")[2]
    result = run_here(workdir, *flags, config=config_file).ok().result
    scores = {k.partition("/")[2]: v["mean"] for k, v in result["eval"].items()}
    answers = read_jsonl(workdir / "predictions" / "test.jsonl")
    rows = open_source(films["ua.test"], cache_dir=tmp_path).read()
    assert len(answers) == len(rows) == 120
    label = np.asarray([a["label"] for a in answers])
    value = np.asarray([a["prediction"] for a in answers])
    group = np.asarray([int(a["user"]) for a in answers])
    for name, wanted in by_user(group, label >= 4, value).items():
        assert scores[name] == pytest.approx(wanted, abs=1e-6), name
    assert scores["users"] + scores["users_none_liked"] == 12 and scores["n_cold_user"] == 0
    known = set(open_source(films["ua.base"], cache_dir=tmp_path).read().columns["item"])
    cold = np.asarray([a["item"] not in known for a in answers])
    assert 0 < cold.sum() == scores["n_cold_item"] < 120
    assert [("item" in a["unknown"]) for a in answers] == cold.tolist()
    if objective == "rating":
        assert scores["rmse"] == pytest.approx(np.sqrt(np.mean((label - value) ** 2)), abs=1e-5)
        wanted = np.sqrt(np.mean((label - value)[cold] ** 2))
        assert scores["rmse_cold_item"] == pytest.approx(wanted, abs=1e-5)
        mean = np.mean([float(r) for r in open_source(
            films["ua.base"], cache_dir=tmp_path).read().columns["rating"]])  # fmt: skip
        assert scores["rmse"] < 1.1 * np.sqrt(np.mean((label - mean) ** 2)), "learnt nothing"
    else:
        assert "rmse" not in scores

    # The same rows, shuffled and without their ratings, in another process's file.
    order = np.random.default_rng(0).permutation(120)
    columns = ("user", "item", "title", "genres", "age", "gender", "occupation", "timestamp")
    given = [{"id": int(i), **{c: rows.columns[c][i] for c in columns}} for i in order]
    given.append({**given[0], "id": 120, "user": 7777, "item": "new", "title": "an unknown film"})
    path = write_jsonl(tmp_path / "rows.jsonl", given)
    run_here(
        workdir, *flags, "--mode=predict", f"--config.predict.input={path}", config=config_file
    ).ok()
    lines = read_jsonl(workdir / "predictions" / "rows.jsonl")
    assert [line["id"] for line in lines] == [*order, 120]
    assert lines[-1]["unknown"] == ["user", "item"] and lines[-1]["rank"] == 1
    for line in lines[:-1]:
        assert line["label"] == pytest.approx(answers[line["id"]]["prediction"], abs=2e-5)
        mine = [other["label"] for other in lines if other["user"] == line["user"]]
        assert abs(line["rank"] - 1 - sum(v > line["label"] for v in mine)) <= mine.count(
            line["label"]
        )
    lists = read_jsonl(workdir / "predictions" / "rows.ranked.jsonl")
    assert [one["user"] for one in lists] == list(dict.fromkeys(line["user"] for line in lines))
    assert sum(len(one["ranked"]) for one in lists) == 121
    for one in lists:
        scores_of_one = [item["label"] for item in one["ranked"]]
        assert scores_of_one == sorted(scores_of_one, reverse=True) and "title" in one["ranked"][0]

    # A row without a column that the model reads is no row.
    bad = write_jsonl(tmp_path / "bad.jsonl", [{"user": 1, "item": 2, "title": "x", "genres": "y"}])
    words = ["--mode=predict", f"--config.predict.input={bad}"]
    run_here(workdir, *flags, *words, config=config_file).refused("bad.jsonl", "'gender'")


def test_a_rating_out_of_range_stops_the_run(run_here, world: World, films, tmp_path):
    path = Path(films["ua.base"].partition("?")[0].removeprefix("files:"))
    copied = tmp_path / "ua.base"
    copied.write_text(path.read_text() + "3\t5\t7\t1\n")
    uri = f"files:{copied}?{films['ua.base'].partition('?')[2]}"
    config_flag, *flags = flags_of(world, {**films, "ua.base": uri})
    done = run_here(tmp_path / "run", *flags, config=config_flag.partition("=")[2])
    last = len(copied.read_text().splitlines())
    done.refused(f"ua.base:{last}: rating is '7'", "1 to 5")
