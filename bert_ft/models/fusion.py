"""A head that joins an example's text with its categorical and numeric columns.

Batch fields that it reads, P being the pieces of an example: categories int32 (B, P, C), rows of
the columns' tables, 0 being 'unknown'; numbers float32 (B, P, F), standardised.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from bert_ft.models import ops
from bert_ft.models.bert import Batch, Dense, Embed
from bert_ft.models.heads import Outputs, pooled_first, sequence_ids
from bert_ft.models.noise import Noise

TABLE_STD = 0.1  # of the embeddings at the start, beside pooled values of about 1
SITE = -2  # of this head's noise; -1 is the pooler's
_FAR = 1 << 20  # lanes of the id draws, beyond those of any hidden layer


class FusionHead(nn.Module):
    """One score for each sequence, float32 {'score': (B, P)}, of its pooled text t, the embeddings
    e_c of its categories and its numbers n:

        w . gelu(W [t, e_1 … e_C, n] + b) + b' + sum_c u_c

    the u_c being one number for each row of each table: what a factor model calls biases, the wide
    side of Cheng et al. 2016.

    Adam moves every parameter by about the learning rate a step, too little for tables that start
    from nothing beside a pretrained encoder. So a table's parameters are its values divided by
    table_rate: they move as if their learning rate were table_rate times the encoder's
    (`ops.scaled`).

    In training each category of an example, in all its pieces at once, is read as 'unknown' with
    probability id_dropout, which is what teaches that row what to say of what it never saw. The
    draw is a hash of (seed, step, example, column), as all dropout is (`ops.dropout`): packing,
    devices and a resumed run change nothing.
    """

    tables: tuple[int, ...]  # rows of each column's table, 'unknown' included
    numbers: int
    width: int
    hidden: int
    table_rate: float
    id_dropout: float
    config: Any
    dtype: jnp.dtype
    first_only = True

    @nn.compact
    def __call__(self, hidden: jax.Array, batch: Batch, noise: Noise | None) -> Outputs:
        pooled = pooled_first(hidden, batch, noise, self.config, self.dtype)
        count, examples = len(pooled), len(batch["ordinal"])
        categories, numbers = self._fields(batch, count)
        if noise and self.id_dropout:
            unknown = unknown_ids(noise, batch, len(self.tables), self.id_dropout)
            categories = jnp.where(unknown, 0, categories)
        parts, wide = [pooled], jnp.zeros(count)
        for c, rows in enumerate(self.tables):
            std = TABLE_STD / self.table_rate
            table = Embed(rows, self.width, std, name=f"table_{c}")
            parts.append(ops.scaled(table(categories[:, c]), self.table_rate))
            one = Embed(rows, 1, 0.0, name=f"wide_{c}")(categories[:, c])
            wide += ops.scaled(one[:, 0], self.table_rate)
        x = jnp.concatenate([*parts, numbers], axis=1)
        x = ops.gelu(Dense(self.hidden, jnp.float32, x.shape[-1] ** -0.5, name="mix")(x))
        if noise:
            x = noise.hidden(x, SITE, sequence_ids(batch))
        score = Dense(1, jnp.float32, self.config.initializer_range, name="score")(x)[:, 0] + wide
        return {"score": score.reshape(examples, -1)}

    def _fields(self, batch: Batch, count: int) -> tuple[jax.Array, jax.Array]:
        """categories (B * P, C) and numbers (B * P, F)."""
        shapes = (count, len(self.tables)), (count, self.numbers)
        if self.is_initializing():  # from a batch that has the encoder's arrays only
            return jnp.zeros(shapes[0], jnp.int32), jnp.zeros(shapes[1])
        return batch["categories"].reshape(shapes[0]), batch["numbers"].reshape(shapes[1])


def unknown_ids(noise: Noise, batch: Batch, columns: int, rate: float) -> jax.Array:
    """bool (B * P, columns): the categories that this step reads as unknown."""
    salt = ops.token_salt(noise.words[SITE], batch["ordinal"])[:, None]
    lanes = _FAR + jnp.arange(columns)
    ones = jnp.ones((batch["ordinal"].shape[0], columns))
    gone_BxC = ops.dropout(ones, rate, salt, lanes) == 0
    pieces = batch["example_slot"].shape[0] // batch["ordinal"].shape[0]
    return jnp.repeat(gone_BxC, pieces, axis=0)
