"""A tiny BERT, reviews that it can learn, a config for both, and two ways to run the program."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent

# Compiling takes longer than running what is compiled: a tiny model needs no fast code. The same
# for this process and for those it starts, so that all compute the same, bit for bit.
XLA_FLAGS = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {XLA_FLAGS}".strip()

SUBJECTS = ["the film", "this movie", "the plot", "its acting", "the music", "every scene"]
VERBS = ["is", "was", "feels", "looks", "seems", "sounds"]
GOOD = ["great", "wonderful", "brilliant", "moving", "superb", "lovely", "fresh", "clever"]
BAD = ["awful", "boring", "dull", "terrible", "weak", "stale", "clumsy", "pointless"]
TAILS = ["in parts", "from start to end", "to me", "for two hours", "once again", "as a whole"]
WORDS = sorted(set(" ".join([*SUBJECTS, *VERBS, *GOOD, *BAD, *TAILS]).split()))
PIECES = ["ing", "ed", "er", "est", "ly", "ful", "less", "ness", "ion", "able", "al"]


def vocabulary() -> list[str]:
    """A WordPiece vocabulary: letters, digits and punctuation spell what the words do not cover."""
    characters = [chr(c) for c in (*range(ord("a"), ord("z") + 1), *range(ord("0"), ord("9") + 1))]
    punctuation = list(".,;:!?'\"()-")
    inner = [f"##{c}" for c in characters] + [f"##{p}" for p in PIECES]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    return special + characters + punctuation + inner + [w for w in WORDS if len(w) > 1]


def write_bert(
    directory: Path, hidden: int = 32, layers: int = 2, positions: int = 64, seed: int = 0
) -> Path:
    """A BERT with random weights in the Hugging Face format, tokenizer included."""
    from safetensors.numpy import save_file
    from transformers import BertTokenizerFast

    directory.mkdir(parents=True, exist_ok=True)
    words = vocabulary()
    (directory / "vocab.txt").write_text("\n".join(words) + "\n")
    vocab = {word: i for i, word in enumerate(words)}
    BertTokenizerFast(vocab=vocab, do_lower_case=True).save_pretrained(directory)
    config = {
        "model_type": "bert",
        "architectures": ["BertModel"],
        "vocab_size": len(words),
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "intermediate_size": 2 * hidden,
        "max_position_embeddings": positions,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
        "hidden_act": "gelu",
        "initializer_range": 0.02,
        "pad_token_id": 0,
    }
    (directory / "config.json").write_text(json.dumps(config, indent=1))
    rng = np.random.default_rng(seed)
    tensors: dict[str, np.ndarray] = {}

    def matrix(name: str, *shape: int) -> None:
        # Larger than BERT's 0.02, as after pretraining: signals then pass without much training.
        tensors[name] = rng.normal(0, shape[-1] ** -0.5, shape).astype(np.float32)

    def dense(name: str, out: int, into: int) -> None:
        matrix(f"{name}.weight", out, into)
        tensors[f"{name}.bias"] = np.zeros(out, np.float32)

    def norm(name: str) -> None:
        tensors[f"{name}.weight"] = np.ones(hidden, np.float32)
        tensors[f"{name}.bias"] = np.zeros(hidden, np.float32)

    matrix("embeddings.word_embeddings.weight", len(words), hidden)
    tensors["embeddings.word_embeddings.weight"] *= 5
    matrix("embeddings.position_embeddings.weight", positions, hidden)
    matrix("embeddings.token_type_embeddings.weight", 2, hidden)
    norm("embeddings.LayerNorm")
    for i in range(layers):
        layer = f"encoder.layer.{i}"
        for name in ("query", "key", "value"):
            dense(f"{layer}.attention.self.{name}", hidden, hidden)
        dense(f"{layer}.attention.output.dense", hidden, hidden)
        norm(f"{layer}.attention.output.LayerNorm")
        dense(f"{layer}.intermediate.dense", 2 * hidden, hidden)
        dense(f"{layer}.output.dense", hidden, 2 * hidden)
        norm(f"{layer}.output.LayerNorm")
    dense("pooler.dense", hidden, hidden)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def reviews(count: int, seed: int) -> list[dict[str, Any]]:
    """Rows of id, text and label: 1 where the adjectives are good ones, 0 where they are bad."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        label = int(rng.integers(2))
        clauses = [
            f"{rng.choice(SUBJECTS)} {rng.choice(VERBS)} {rng.choice((BAD, GOOD)[label])}"
            for _ in range(int(rng.integers(1, 4)))
        ]
        text = ", ".join(clauses) + (f" {rng.choice(TAILS)}" if rng.integers(2) else "") + "."
        rows.append({"id": f"{seed}-{i}", "text": text, "label": label})
    return rows


def write_csv(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    rows = list(rows)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), "utf-8")
    return path


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]


@dataclasses.dataclass(frozen=True)
class World:
    """A tiny system: `config` is a config file whose get_config trains `model` on the reviews."""

    root: Path
    model: Path
    train: Path
    dev: Path
    test: Path
    config: Path


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("world")
    made = World(
        root,
        write_bert(root / "model", layers=1),
        write_csv(root / "train.csv", reviews(160, seed=1)),
        write_csv(root / "dev.csv", reviews(40, seed=2)),
        write_jsonl(root / "test.jsonl", reviews(45, seed=3)),
        root / "tiny.py",
    )
    made.config.write_text(
        textwrap.dedent(f'''
        """A tiny BERT on tiny reviews."""

        from bert_ft import config


        def get_config(variant: str = ""):
            c = config.default()
            c.model.pretrained = {str(made.model)!r}
            c.data.train = {f"files:{made.train}"!r}
            c.data.dev = {f"files:{made.dev}"!r}
            c.data.test = {f"files:{made.test}"!r}
            c.data.max_length = 32
            c.data.row_counts = 1
            c.task.label_names = "negative,positive"
            c.train.batch_size = 8
            c.train.steps = 20
            c.train.learning_rate = 3e-3
            c.train.schedule, c.train.warmup = "constant", 0.0
            c.model.dropout = 0.0
            c.eval.batch_size = 16
            c.checkpoint.every_seconds = 0.0
            c.log.every_steps = 1
            c.log.progress = False
            return c
        ''').lstrip()
    )
    return made


@pytest.fixture(scope="session")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of two layers, for what tells layers apart: the world's has one, for each takes its
    time to compile."""
    return write_bert(tmp_path_factory.mktemp("deep") / "model", layers=2)


def remove(workdir: Path, *names: str) -> None:
    """Files or directories that a workdir has, as if its run had not come so far."""
    for name in names:
        path = workdir / name
        assert path.exists(), sorted(p.name for p in workdir.rglob("*"))[:40]
        shutil.rmtree(path) if path.is_dir() else path.unlink()


@dataclasses.dataclass(frozen=True)
class Done:
    """A finished run of the program."""

    code: int
    out: str
    err: str
    workdir: Path

    @property
    def result(self) -> dict[str, Any]:
        return json.loads((self.workdir / "result.json").read_text())

    @property
    def metrics(self) -> list[dict[str, Any]]:
        return read_jsonl(self.workdir / "metrics.jsonl")

    def values(self, name: str) -> dict[int, float]:
        """{step: value} of a metric; fails where a step has it twice."""
        lines = [(line["step"], line["value"]) for line in self.metrics if line["name"] == name]
        assert len(lines) == len(dict(lines)), f"{name} twice: {lines}"
        return dict(lines)

    def ok(self) -> Done:
        assert self.code == 0, f"exit code {self.code}\n{self.out}\n{self.err}"
        return self

    def refused(self, *words: str) -> str:
        """The one line of an input error, which must hold `words`; nothing else may be on stderr
        after the program has given up, and no traceback anywhere."""
        lines = self.err.strip().splitlines()
        assert self.code == 2, f"exit code {self.code}\n{self.out}\n{self.err}"
        assert lines and lines[-1].startswith("error: "), self.err
        assert sum(line.startswith("error:") for line in lines) == 1, self.err
        assert "Traceback" not in self.err + self.out, self.err
        missing = [word for word in words if word not in lines[-1]]
        assert not missing, f"{missing} not in: {lines[-1]}"
        return lines[-1]


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shared by all runs of the session, so that each program is compiled once."""
    return tmp_path_factory.mktemp("cache")


def environment(cache: Path, devices: int = 1) -> dict[str, str]:
    """Of a subprocess: CPU devices and a cache directory of its own. It writes its bytecode down,
    whatever is set here: to compile our modules takes 0.4 s, and most tests start a process."""
    flags = f"--xla_force_host_platform_device_count={devices} {XLA_FLAGS}"
    given = {"XDG_CACHE_HOME": str(cache), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    return os.environ | given | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": ""}


def command(config: Path | str, workdir: Path, *flags: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "bert_ft.main",
        f"--config={config}",
        f"--workdir={workdir}",
        *flags,
    ]


@pytest.fixture(scope="session")
def run_cli(world: World, cache: Path) -> Callable[..., Done]:
    """run_cli(workdir, *flags, config=, devices=, cache=, timeout=): the program in a process."""

    def run(
        workdir: Path,
        *flags: str,
        config: Path | str = world.config,
        devices: int = 1,
        cache: Path = cache,
        timeout: float = 600,
    ) -> Done:
        done = subprocess.run(
            command(config, workdir, *flags),
            env=environment(cache, devices),
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        return Done(done.returncode, done.stdout, done.stderr, workdir)

    return run


@pytest.fixture
def run_here(
    world: World, cache: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., Done]:
    """As run_cli, within this process: without the seconds that a start takes."""
    from absl import flags
    from absl.testing import flagsaver
    from jax.experimental.compilation_cache import compilation_cache

    from bert_ft import main

    def run(workdir: Path, *words: str, config: Path | str = world.config) -> Done:
        argv = command(config, workdir, *words)[2:]
        monkeypatch.setattr(sys, "argv", argv)
        monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
        compilation_cache.reset_cache()  # the first compilation of a process settles where it is
        before = flagsaver.save_flag_values()
        capfd.readouterr()
        try:
            code = main.main(argv)
        finally:
            flagsaver.restore_flag_values(before, flags.FLAGS)
        out, err = capfd.readouterr()
        return Done(code, out, err, workdir)

    return run
