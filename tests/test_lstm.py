"""The LSTM baseline: torch's cell, packed rows equal to padded ones, and an example's vector."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import init, varied

from bert_ft.data.batches import BatchPlan
from bert_ft.models.heads import Model, SequenceHead, TokenHead
from bert_ft.models.lstm import LstmConfig, LstmEncoder
from bert_ft.models.multi import MultiHead

SIZES = LstmConfig(83, 16, num_hidden_layers=2, max_position_embeddings=40)
# float32 sums in another order
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def batches(packed_rows: int = 40):
    """The same ten examples, packed several to a row and one a row."""
    plans = [BatchPlan(varied(10), 10, 1, packed_rows, packed=p) for p in (True, False)]
    packed, padded = (plan.batch(0) for plan in plans)
    assert packed["tokens"].shape[0] < padded["tokens"].shape[0] == 10
    return packed, padded


@pytest.mark.parametrize(
    ("pool", "bidirectional"), [("last", True), ("mean", True), ("last", False)]
)
def test_packed_equals_padded_and_torch(pool, bidirectional):
    torch = pytest.importorskip("torch")
    sizes = dataclasses.replace(SIZES, bidirectional=bidirectional, pool=pool)
    encoder = LstmEncoder(sizes)
    packed, padded = batches()
    params = jax.jit(encoder.init)(jax.random.key(0), packed)["params"]
    ours = []
    for batch in (packed, padded):
        states = jax.jit(partial(encoder.apply, first_only=True))({"params": params}, batch)
        ours.append(np.asarray(states).reshape(-1, states.shape[-1])[batch["example_slot"]])
    np.testing.assert_allclose(ours[0], ours[1], **CLOSE)

    theirs = torch.nn.LSTM(16, 16, 2, batch_first=True, bidirectional=bidirectional)
    with torch.no_grad():
        for i in range(2):
            for name, tail in (("forward", ""), ("backward", "_reverse"))[: 1 + bidirectional]:
                p = params[f"{name}_{i}"]
                for torch_name, value in (
                    ("weight_ih", p["kernel"].T),
                    ("weight_hh", p["recurrent"].T),
                    ("bias_ih", p["bias"]),
                    ("bias_hh", jnp.zeros_like(p["bias"])),
                ):
                    weight = getattr(theirs, f"{torch_name}_l{i}{tail}")
                    weight.copy_(torch.tensor(np.asarray(value)))
        for e, length in enumerate(padded["example_length"]):
            row = padded["example_start"][e] // padded["tokens"].shape[1]
            tokens = padded["tokens"][row, :length]
            x = torch.tensor(np.asarray(params["word"]["embedding"])[tokens])[None]
            states, (last, _) = theirs(x)
            sides = last[-(1 + bidirectional) :, 0].reshape(-1)
            wanted = sides if pool == "last" else states[0].mean(axis=0)
            np.testing.assert_allclose(ours[0][e], wanted.numpy(), **CLOSE)


def test_states_of_every_token_packed_equal_padded():
    encoder = LstmEncoder(SIZES)
    packed, padded = batches()
    params = jax.jit(encoder.init)(jax.random.key(0), packed)["params"]
    states = [
        np.asarray(jax.jit(encoder.apply)({"params": params}, b)).reshape(-1, 32)
        for b in (packed, padded)
    ]
    for e, length in enumerate(packed["example_length"]):
        a, b = (
            s[batch["example_start"][e] :][:length]
            for s, batch in zip(states, (packed, padded), strict=True)
        )
        np.testing.assert_allclose(a, b, **CLOSE)


def test_gradient_with_dropout_packed_equals_padded():
    """Dropout's masks go by the example and the place in it, so even they agree."""
    model = Model(SIZES, partial(SequenceHead, 3))
    params = init(model)
    assert sorted(params["top"]) == ["classifier"]  # dropout and dense, no pooler

    def loss(params, batch):
        logits = model.apply({"params": params}, batch, jax.random.key(1), 0.2)["logits"]
        return jnp.sum(jnp.sin(logits))

    one, other = (jax.jit(jax.grad(loss))(params, b) for b in batches())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), one, other)
    assert all(np.abs(x).max() > 0 for x in jax.tree.leaves(one))


@pytest.mark.parametrize("pool", ["last", "mean"])
def test_a_head_of_whole_texts_reads_their_vector_whatever_stands_beside_it(pool):
    """Beside a head of tokens, for which the encoder gives every state."""
    sizes, of_text = dataclasses.replace(SIZES, pool=pool), partial(SequenceHead, 3)
    beside = (("tags", partial(TokenHead, 5, 0.0)), ("label", of_text))
    both = Model(sizes, partial(MultiHead, beside, "", 1.0))
    params, batch = init(both), batches()[0]
    own = {"encoder": params["encoder"], "top": params["top"]["label"]}
    found = jax.jit(both.apply)({"params": params}, batch)["label"]["logits"]
    alone = jax.jit(Model(sizes, of_text).apply)({"params": own}, batch)["logits"]
    np.testing.assert_allclose(found, alone, **CLOSE)
