"""The knobs config.data.*: a part of config.py, where the others are."""

from __future__ import annotations

from ml_collections import ConfigDict


def of_data() -> ConfigDict:
    """Their defaults."""
    c = ConfigDict()
    c.train = ""  # data URIs: files:, tfds:, hf:, pypi:
    c.dev = ""  # scored each eval.every_steps; eval.keep_best chooses by it; '' where there is none
    c.test = ""  # the reported score; '' where there is none
    c.text = "text"  # column of the text; split= in a URI divides by it
    c.text_pair = ""  # column of a second text, '' for none
    c.label = "label"  # column of the label
    c.candidates = ""  # of 'matching': a URI; '' takes the answers that the sets hold
    c.max_length = 128  # tokens of an example, special ones included; longer ones are cut
    c.packing = "on"  # 'off' gives one example a row through the very same code
    c.row_length = 0  # tokens of a packed row; 0 chooses the shortest that holds every example
    c.row_counts = 3  # at most so many compiled train steps, one for each number of rows
    c.bad_rows = "stop"  # 'skip' counts and lists rows that can't be read
    c.cache_dir = ""  # '' is the user's cache directory
    c.prefetch = 2  # batches made ahead of the device

    # Of the training set only; dev and test stay as they are.
    c.shots = 0  # so many rows of each label, or in all where the task has no classes; 0 is all
    c.shots_seed = 0  # which ones; with one seed 16 are a part of 64
    c.unlabelled = ""  # a URI of texts without labels, for the methods 'pseudo' and 'uda'
    c.unlabelled_share = 0.5  # of the examples of each batch; an epoch is one of the labelled rows
    c.oversample = "none"  # rarer labels come more often: 'balanced', or 'sqrt' of their numbers
    # Label-preserving changes, KIND:STRENGTH,… in the order they are made (data/augment.py). With
    # the method 'uda' they are those of the unlabelled rows, and labelled ones stay as they are.
    c.augment = ""  # synonyms:0.1,swap:0.1,typos:0.05; '' is none
    c.augment_share = 0.5  # share of the rows that a version of the set changes
    c.augment_epochs = 3  # versions, one an epoch; a longer run reads them again in turn
    c.augment_seed = 0  # apart from train.seed: trials of many seeds share the versions
    c.augment_words = ""  # of 'synonyms' and 'insert': TSV of word, synonym, …, or JSONL
    c.augment_model = ""  # of 'masked': a checkpoint with a masked-word head, as model.pretrained
    c.augment_paraphrases = ""  # of 'paraphrase': module:function, or TSV of text, paraphrase, …
    return c
