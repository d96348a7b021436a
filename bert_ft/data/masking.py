"""Which words are hidden from a masked language model, and behind what. NumPy only.

What is drawn for an example depends on (seed, use, word) alone, by a hash: not on where in a batch
the example lies, nor on which host holds it. So batch = f(seed, step) as everywhere.

It is drawn on the host and not, as dropout is, on the device: to take words until a share of the
tokens is reached is a loop over words, which gives every example its exact number of hidden tokens
and so a bound on the slots of a row; and the model then needs to know nothing of it but the slots.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from bert_ft.data.batches import Batch, Shape
from bert_ft.data.encode import Encoded

EVALUATION = -1  # in the place of a seed: one draw an example, whatever the run's seed


def _hash(*parts: np.ndarray | int) -> np.ndarray:
    """uint64, of the broadcast shape: splitmix64's finaliser (Steele et al. 2014) after each."""
    x = np.zeros(1, np.uint64)
    for part in parts:
        x = x ^ np.asarray(part).astype(np.int64).astype(np.uint64)
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x = x ^ (x >> np.uint64(31))
    return x


def _uniform(bits: np.ndarray) -> np.ndarray:
    """float64 in [0, 1)."""
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def wanted(maskable: np.ndarray, rate: float) -> np.ndarray:
    """How many tokens are to be hidden of so many: rate of them, rounded, but one at least where
    there is any (Devlin et al. 2019, create_pretraining_data.py)."""
    return np.minimum(maskable, np.maximum(1, np.rint(rate * maskable).astype(np.int64)))


def choose_words(
    example: np.ndarray, word: np.ndarray, order: np.ndarray, room: np.ndarray
) -> np.ndarray:
    """bool (T,): the tokens of the words that are hidden.

    Args:
      example, word: int (T,). The tokens of a word stand together, as do those of an example.
      order: float (T,), the same for all tokens of a word: the order in which words are tried.
      room: int (examples,), tokens to hide at most.

    A word is taken where it fits whole into the room that is left, else passed over, as in
    create_pretraining_data.py.
    """
    if not len(example):
        return np.zeros(0, bool)
    opens = np.ones(len(example), bool)
    opens[1:] = (example[1:] != example[:-1]) | (word[1:] != word[:-1])
    first = np.flatnonzero(opens)
    size = np.diff(np.append(first, len(example)))
    of = example[first]
    turn = np.lexsort((order[first], of))  # words by example, then in the order of trial
    starts = np.searchsorted(of[turn], np.arange(len(room)))
    nth = np.arange(len(first)) - starts[of[turn]]
    sizes = np.full((len(room), int(nth.max()) + 1), np.iinfo(np.int64).max)
    sizes[of[turn], nth] = size[turn]
    taken, left = np.zeros(sizes.shape, bool), room.astype(np.int64)
    for k in range(sizes.shape[1]):
        taken[:, k] = sizes[:, k] <= left
        left = left - np.where(taken[:, k], sizes[:, k], 0)
        if not left.any():
            break
    chosen = np.zeros(len(first), bool)
    chosen[turn] = taken[of[turn], nth]
    return np.repeat(chosen, size)


@functools.lru_cache(maxsize=4)
def _without(count: int, special: tuple[int, ...]) -> np.ndarray:
    return np.setdiff1d(np.arange(count), special)


@dataclasses.dataclass(frozen=True)
class Masking:
    """Draws the hidden words of a batch; a `Draw` of data/batches.py.

    Of the tokens that are chosen `random` (a share) become a random one, `kept` stay, and the
    others become the mask token, each for itself, also within a word. The data's token field `word`
    numbers an example's words from 1 and is 0 for what is never hidden: special tokens, and masks
    that stand in the text itself. `fitted` has 'mask_id', 'special_ids' and 'tokens', how many
    there are. The batch loses `word` and gains, each int32 (R, M), M slots a row:

        masked_slots   column of the token; 0 for an empty slot
        masked_token   the token that stood there; -1 for an empty slot, and for a mask of the text
        masked_of      which of the batch's examples it is of; B for an empty slot
        masked_word    the word's number in its example, 0 for a mask of the text

    In an evaluation, an example whose text has masks (field `blank`) has those in its slots and no
    others: its prediction is asked for.
    """

    rate: float
    random: float = 0.1
    kept: float = 0.1
    row_arrays = frozenset({"masked_slots", "masked_token", "masked_of", "masked_word"})

    def slots(self, shape: Shape, blanks: int = 0) -> int:
        """M. Of an example of l tokens, two of them special, at most max(1, rate (l - 2) + 1/2) are
        hidden, which is at most rate l + max(1 - 3 rate, 1/2 - 2 rate); and a row has at most
        `shape.slots` examples, with at most `blanks` masks of their own each."""
        extra = max(1 - 3 * self.rate, 0.5 - 2 * self.rate, 0.0) + blanks
        most = int(self.rate * shape.row_length + extra * shape.slots + 1e-6)
        return min(-(-most // 4) * 4, shape.row_length)

    def __call__(
        self, batch: Batch, data: Encoded, shape: Shape, seed: int | None, uses: np.ndarray
    ) -> Batch:
        assert data.pieces == 1
        blank = data.fields.get("blank")
        rows, length = batch["tokens"].shape
        batch = dict(batch)
        words, tokens = batch.pop("word").reshape(-1), batch["tokens"].reshape(-1)
        # Which example of the batch each token is of; without a meaning where it is padding.
        of = batch["segments"].reshape(-1) - int(batch["ordinal"][0])
        here = np.flatnonzero(words > 0)
        room = wanted(np.bincount(of[here], minlength=len(uses)), self.rate)
        asked = np.zeros(0, np.int64)
        if seed is None and blank is not None:
            room = np.where((batch["blank"] >= 0).any(axis=1), 0, room)
            is_mask = (tokens == data.fitted["mask_id"]) & (batch["segments"].reshape(-1) > 0)
            asked = np.flatnonzero(is_mask & (words == 0))
        key = _hash(EVALUATION if seed is None else seed, uses)
        order = _uniform(_hash(key[of[here]].view(np.int64), words[here]))
        chosen = here[choose_words(of[here], words[here], order, room)]
        batch["tokens"] = self._hidden(batch, chosen, key[of[chosen]], data).reshape(rows, length)
        at = np.sort(np.concatenate([chosen, asked]))
        row = at // length
        nth = np.arange(len(at)) - np.searchsorted(row, row)
        many = self.slots(shape, blank.shape[1] if blank is not None else 0)
        assert not len(at) or nth.max() < many, f"{nth.max() + 1} masked tokens, {many} slots"

        def laid(values: np.ndarray, empty: int) -> np.ndarray:
            out = np.full((rows, many), empty, np.int32)
            out[row, nth] = values
            return out

        return batch | {
            "masked_slots": laid(at % length, 0),
            "masked_token": laid(np.where(words[at] > 0, tokens[at], -1), -1),
            "masked_of": laid(of[at], len(uses)),
            "masked_word": laid(words[at], 0),
        }

    def _hidden(
        self, batch: Batch, chosen: np.ndarray, key: np.ndarray, data: Encoded
    ) -> np.ndarray:
        """The batch's tokens, flat, with the chosen ones replaced. The random ones are even over
        the vocabulary without its special tokens."""
        tokens = batch["tokens"].reshape(-1).copy()
        place = batch["positions"].reshape(-1)[chosen]
        draw = _uniform(_hash(key.view(np.int64), place, 1))
        known = _without(int(data.fitted["tokens"]), tuple(data.fitted["special_ids"]))
        other = known[_hash(key.view(np.int64), place, 2) % np.uint64(len(known))]
        replaced = np.where(draw < self.random, other, data.fitted["mask_id"])
        kept = draw >= 1 - self.kept
        tokens[chosen] = np.where(kept, tokens[chosen], replaced)
        return tokens
