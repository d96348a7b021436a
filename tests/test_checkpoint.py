"""Checkpoints: what is saved comes back bit for bit, and what is damaged never comes back."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bert_ft.errors import InputError
from bert_ft.train.checkpoint import Checkpoints
from bert_ft.train.checksum import checksums, params_sha256

META = {"config": {"train.seed": 0, "log.every_steps": 10}, "data": "abc"}
IGNORE = frozenset({"log."})
ROOT = Path(__file__).resolve().parents[1]


def make_params(seed=0, width=64):
    keys = jax.random.split(jax.random.PRNGKey(seed), 3)
    return {
        "encoder": {"kernel": jax.random.normal(keys[0], (16, width)), "bias": jnp.zeros(width)},
        "head": {"kernel": jax.random.normal(keys[1], (width, 2)).astype(jnp.bfloat16)},
    }


def make_state(seed=0, width=64):
    params = make_params(seed, width)
    moments = optax.adamw(1e-3).init(params)
    _, moments = optax.adamw(1e-3).update(params, moments, params)
    return {
        "params": params,
        "optimizer": moments,
        "step": jnp.int32(seed),
        "mask": jnp.arange(5) % 2 == 0,
        "rng": jax.random.PRNGKey(seed + 1),
    }


def abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def assert_same(left, right):
    assert str(jax.tree.structure(left)) == str(jax.tree.structure(right))
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert a.dtype == b.dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


class Said(list):
    def __call__(self, line):
        assert "\n" not in line
        self.append(line)

    @property
    def text(self):
        return "\n".join(self)


@pytest.fixture
def said():
    return Said()


@pytest.fixture
def start(tmp_path, said):
    """Opens the checkpoints of `tmp_path` as a new process would; closes the ones opened before."""
    opened: list[Checkpoints] = []

    def open_it(**changes):
        while opened:
            opened.pop().close()
        options: dict[str, Any] = {
            "keep": 3,
            "every_steps": 0,
            "every_seconds": 0.0,
            "ignore": IGNORE,
        }
        opened.append(Checkpoints(tmp_path / "checkpoints", say=said, **(options | changes)))
        return opened[-1]

    yield open_it
    while opened:
        opened.pop().close()


def save_all(checkpoints, *steps):
    for step in steps:
        checkpoints.save(step, make_state(step), META)
    checkpoints.wait()


def data_file(directory, step):
    """The file that holds the numbers of the largest leaf."""
    numbers = np.asarray(make_state(step)["params"]["encoder"]["kernel"]).tobytes()
    files = (directory / "checkpoints" / str(step)).rglob("*")
    return next(f for f in files if f.is_file() and numbers in f.read_bytes())


def test_round_trip_is_bit_for_bit(start, said):
    state = make_state(3)
    # NaN with a payload, -0.0 and a subnormal, which a comparison of values would let pass.
    odd = np.array([0x7FC01234, 0x80000000, 1], np.uint32).view(np.float32)
    state["odd"] = jnp.asarray(odd)
    start().save(7, state, META)
    restored, step, meta = start().restore(abstract(state), META)
    assert_same(restored, state)
    assert (step, meta) == (7, META)
    assert said == []


def test_no_checkpoint(start):
    checkpoints = start()
    assert checkpoints.restore(abstract(make_state()), META) is None
    assert checkpoints.steps() == []
    assert checkpoints.best() is None


def test_state_may_be_donated_right_after_save(start):
    """Large enough that the write is still going on while the next steps overwrite the buffers."""
    step_fn = jax.jit(lambda tree: jax.tree.map(lambda x: x * 2 + 1, tree), donate_argnums=0)
    state = {f"w{i}": jnp.arange(1 << 20, dtype=jnp.float32) + i for i in range(8)}
    wanted = jax.tree.map(lambda x: np.array(x), state)
    checkpoints = start()
    checkpoints.save(1, state, META)
    for _ in range(5):
        donated = state
        state = step_fn(state)
    jax.block_until_ready(state)
    assert donated["w0"].is_deleted()
    restored, _, _ = start().restore(abstract(state), META)
    assert_same(restored, wanted)
    # What was restored may be donated too, without touching what is restored again.
    jax.block_until_ready(step_fn(restored))
    assert_same(start().restore(abstract(state), META)[0], wanted)


def test_no_implicit_transfer(start):
    state = make_state()
    jax.block_until_ready(state)
    checkpoints = start()
    with jax.transfer_guard("disallow"):
        checkpoints.save(1, state, META)
        checkpoints.wait()
        restored, _, _ = checkpoints.restore(abstract(state), META)
        params_sha256(restored["params"])


def test_keeps_the_newest(start, tmp_path):
    checkpoints = start(keep=2)
    save_all(checkpoints, 1, 2, 3, 4)
    assert checkpoints.steps() == [3, 4]
    assert checkpoints.restore(abstract(make_state()), META, step=3)[1] == 3
    with pytest.raises(InputError, match=r"no checkpoint of step 1; there are \[3, 4\]"):
        checkpoints.restore(abstract(make_state()), META, step=1)


def test_a_step_is_saved_once(start, said):
    checkpoints = start()
    save_all(checkpoints, 1, 1)
    assert checkpoints.steps() == [1]
    assert said == []


def test_due(start, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    checkpoints = start(every_steps=5, every_seconds=60.0)
    assert [step for step in range(12) if checkpoints.due(step)] == [5, 10]
    now[0] += 61
    assert checkpoints.due(12)
    checkpoints.save(12, make_state(), META)
    assert not checkpoints.due(13)
    assert not start().due(1000)


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def flip(path):
    """One bit in the middle of the largest leaf: Orbax alone reads it without a word."""
    content = bytearray(path.read_bytes())
    content[content.index(np.asarray(make_state(3)["params"]["encoder"]["kernel"]).tobytes())] ^= 1
    path.write_bytes(content)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("harm", [truncate, Path.unlink, flip])
def test_damaged_latest_falls_back(start, said, tmp_path, harm):
    save_all(start(), 1, 2, 3)
    harm(data_file(tmp_path, 3))
    checkpoints = start()
    restored, step, _ = checkpoints.restore(abstract(make_state()), META)
    assert step == 2
    assert_same(restored, make_state(2))
    assert len(said) == 1
    assert "WARNING" in said.text
    assert str(tmp_path / "checkpoints" / "3") in said.text
    assert "is damaged" in said.text
    # The run goes over the same steps again, and its step 3 takes the place of the damaged one.
    save_all(checkpoints, 3)
    assert "3 is removed" in said.text
    said.clear()
    assert_same(start().restore(abstract(make_state()), META)[0], make_state(3))
    assert said == []


def test_any_file_may_be_missing_or_damaged(start, said, tmp_path):
    """Whatever file is hurt, what comes back is the right state of step 2 or of step 1."""
    save_all(start(), 1, 2)
    top = tmp_path / "checkpoints"
    shutil.copytree(top / "2", tmp_path / "copy")
    found = sorted(f.relative_to(top / "2") for f in (top / "2").rglob("*") if f.is_file())
    assert len(found) > 6
    rng = random.Random(0)
    fell_back = 0
    checkpoints = start()
    for name in found:
        for harm in ("missing", "empty", "bit"):
            path = top / "2" / name
            content = bytearray(path.read_bytes())
            if harm == "missing":
                path.unlink()
            elif harm == "empty":
                path.write_bytes(b"")
            elif content:
                content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
                path.write_bytes(content)
            said.clear()
            restored, step, meta = checkpoints.restore(abstract(make_state()), META)
            assert_same(restored, make_state(step))
            assert meta == META
            assert bool(said) == (step == 1)
            fell_back += step == 1
            shutil.rmtree(top / "2")
            shutil.copytree(tmp_path / "copy", top / "2")
    assert fell_back > len(found) // 2


def test_all_damaged(start, said, tmp_path):
    save_all(start(), 1, 2)
    for step in (1, 2):
        data_file(tmp_path, step).write_bytes(b"not a checkpoint")
    with pytest.raises(InputError, match="no checkpoint can be read.*step 2.*step 1.*--workdir"):
        start().restore(abstract(make_state()), META)
    assert len(said) == 2
    assert start().steps() == [1, 2]


def test_changed_config_is_refused(start):
    save_all(start(), 1)
    now = {"config": {"train.seed": 1, "log.every_steps": 99, "model.dropout": 0.3}, "data": "abc"}
    with pytest.raises(InputError) as refused:
        start().restore(abstract(make_state()), now)
    message = str(refused.value)
    assert "model.dropout: 0.1 -> 0.3; train.seed: 0 -> 1; use another --workdir" in message
    assert "log." not in message
    assert "\n" not in message


def test_what_may_differ_may_differ(start):
    save_all(start(), 1)
    now = {"config": {"train.seed": 0, "log.progress": True}, "data": "abc"}
    assert start().restore(abstract(make_state()), now)[1] == 1
    assert start().restore(abstract(make_state()), {})[1] == 1


def test_changed_data_is_refused(start):
    save_all(start(), 1)
    with pytest.raises(InputError, match='data: "abc" -> "xyz"; use another --workdir'):
        start().restore(abstract(make_state()), {**META, "data": "xyz"})


def test_another_architecture_is_refused(start, said):
    save_all(start(), 1)
    with pytest.raises(InputError) as refused:
        start().restore(abstract(make_state(width=12)), META)
    message = str(refused.value)
    assert "of another architecture" in message
    assert "params.encoder.bias: float32[64] -> float32[12]" in message
    assert "and 5 more" in message
    state = make_state()
    state["params"]["extra"] = jnp.zeros(3)
    with pytest.raises(InputError, match=r"params.extra: absent -> float32\[3\]"):
        start().restore(abstract(state), META)
    assert said == []  # refused, not taken for damaged


def test_best_is_replaced_and_kept_apart(start, tmp_path):
    checkpoints = start(keep=1)
    for step, score in ((1, 0.5), (4, 0.8), (3, 0.9)):
        checkpoints.save_best(step, make_params(step), META, score)
        checkpoints.save(step + 10, make_state(step), META)
    checkpoints.wait()
    assert checkpoints.best() == (3, 0.9)
    assert [f.name for f in (tmp_path / "best").iterdir()] == ["3"]
    params, step, meta = start().restore_best(abstract(make_params()), META)
    assert_same(params, make_params(3))
    assert (step, meta["score"]) == (3, 0.9)


def test_read_only_touches_nothing(start, tmp_path):
    checkpoints = start(read_only=True)
    assert checkpoints.restore(abstract(make_state()), META) is None
    assert list(tmp_path.iterdir()) == []
    save_all(start(), 1)
    half_written = tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp"
    half_written.mkdir()
    assert start(read_only=True).restore(abstract(make_state()), META)[1] == 1
    assert half_written.exists()  # another run may be writing it
    start().close()
    assert not half_written.exists()


@pytest.mark.parametrize("where", ["file/checkpoints", "/proc/checkpoints"])
def test_directory_that_cannot_be_written(tmp_path, said, where):
    (tmp_path / "file").write_text("a file, not a directory")
    with pytest.raises(InputError, match="cannot be written here: .*; make room or") as refused:
        Checkpoints(tmp_path / where, keep=1, every_steps=0, every_seconds=0, say=said)
    assert "\n" not in str(refused.value)
    assert os.strerror(20 if where.startswith("file") else 2) in str(refused.value)


def test_failed_save_keeps_the_last_good_one(start, said, tmp_path):
    """The directory is gone from under the run for a while, a file in its place."""
    checkpoints = start()
    save_all(checkpoints, 1)
    top = tmp_path / "checkpoints"
    threads = threading.active_count()
    top.rename(tmp_path / "away")
    top.write_text("in the way")
    checkpoints.save(2, make_state(2), META)
    checkpoints.save(3, make_state(3), META)
    assert "2 was not saved" in said.text
    with pytest.raises(InputError, match="3 was not saved: .*"):
        checkpoints.wait()
    checkpoints.wait()  # raised once
    assert threading.active_count() <= threads + 2  # else the process would not end for minutes
    top.unlink()
    (tmp_path / "away").rename(top)
    assert checkpoints.restore(abstract(make_state()), META)[1] == 1
    save_all(checkpoints, 4)
    assert checkpoints.steps() == [1, 4]


def run(script, *args, check=True, devices=1, **options):
    prologue = """
    import sys
    import jax, jax.numpy as jnp, numpy as np
    from tests.test_checkpoint import *
    """
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}
    code = textwrap.dedent(prologue) + textwrap.dedent(script)
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, args)],
        env=env, check=check, cwd=ROOT, text=True, capture_output=True, **options,
    )  # fmt: skip


def test_full_disk(tmp_path):
    """A file size limit stands in for a full disk; the process needs no privilege for it."""
    script = """
    import resource
    big = lambda n: {"w": jnp.full(n, 2.0)}
    said = Said()
    checkpoints = Checkpoints(Path(sys.argv[1]), keep=2, every_steps=0, every_seconds=0, say=said)
    checkpoints.save(1, big(1 << 18), META)
    checkpoints.wait()
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 19, limits[1]))
    checkpoints.save(2, big(1 << 18), META)
    checkpoints.save(3, {"w": jnp.full(8, 3.0)}, META)
    checkpoints.wait()
    assert checkpoints.steps() == [1, 3], checkpoints.steps()
    assert len(said) == 1, said
    assert "2 was not saved: File too large; the last good one is that of step 1" in said[0], said
    assert not list(Path(sys.argv[1]).glob("2*")), "the half-written one still takes space"
    with checkpoints:
        checkpoints.save(4, big(1 << 18), META)
    """
    done = run(script, tmp_path / "checkpoints", check=False)
    assert done.returncode == 1, done.stderr
    assert "InputError" in done.stderr.splitlines()[-1]
    assert "4 was not saved: File too large; make room there" in done.stderr.splitlines()[-1]


def test_exits_quietly(tmp_path):
    """No warning, no traceback, no thread that keeps the process: with close, and without it."""
    script = """
    checkpoints = Checkpoints(Path(sys.argv[1]), keep=2, every_steps=0, every_seconds=0, say=print)
    save_all(checkpoints, 1, 2)
    checkpoints.save_best(2, make_params(2), META, 0.5)
    data_file(Path(sys.argv[1]).parent, 2).unlink()
    assert checkpoints.restore(abstract(make_state()), META)[1] == 1
    if sys.argv[2] == "close":
        checkpoints.close()
    """
    for how in ("close", "leave"):
        done = run(script, tmp_path / how / "checkpoints", how, timeout=60)
        assert done.stderr == ""
        assert done.stdout.count("\n") == done.stdout.count("is damaged") == 1


def test_killed_while_saving(start, said, tmp_path):
    """SIGKILL at random moments: what is left restores, and is at least as new as what the process
    had said to be on disk."""
    script = """
    checkpoints = Checkpoints(Path(sys.argv[1]), keep=2, every_steps=0, every_seconds=0, say=print)
    step = (checkpoints.steps() or [0])[-1]
    print("ready", flush=True)
    while True:
        step += 1
        checkpoints.save(step, make_state(step), META)
        checkpoints.wait()
        print(step, flush=True)
    """
    prologue = "import sys\nfrom tests.test_checkpoint import *\n"
    env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    rng = random.Random(time.time_ns())
    for _ in range(4):
        with subprocess.Popen(
            [sys.executable, "-c", prologue + textwrap.dedent(script), tmp_path / "checkpoints"],
            env=env, cwd=ROOT, text=True, stdout=subprocess.PIPE, bufsize=1,
        ) as child:  # fmt: skip
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
            assert child.stdout.readline().strip().isdigit()
            time.sleep(rng.uniform(0, 0.3))
            child.send_signal(signal.SIGKILL)
            rest = child.stdout.read().split()
        on_disk = int(rest[-1]) if rest else 1
        checkpoints = start()
        restored, step, _ = checkpoints.restore(abstract(make_state()), META)
        assert step >= on_disk
        assert_same(restored, make_state(step))
        start().close()
        left = [f.name for f in (tmp_path / "checkpoints").iterdir()]
        assert all(name.isdigit() for name in left), left
    assert said == []


def test_another_mesh(tmp_path):
    """1 device -> 8 -> 1: the same values, checksums and SHA-256."""
    script = """
    from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
    directory, step = Path(sys.argv[1]), int(sys.argv[2])
    mesh = jax.make_mesh((len(jax.devices()),), ("fsdp",), axis_types=(AxisType.Auto,))
    def place(x):
        spec = PartitionSpec("fsdp") if x.ndim and x.shape[0] % 8 == 0 else PartitionSpec()
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))
    target = jax.tree.map(place, make_state())
    with Checkpoints(directory, keep=9, every_steps=0, every_seconds=0, say=print) as checkpoints:
        if step == 1:
            state = jax.device_put(make_state(5), jax.tree.map(lambda x: x.sharding, target))
        else:
            state, old, _ = checkpoints.restore(target, META)
            assert old == step - 1
        assert_same(state, make_state(5))
        kernel = state["params"]["encoder"]["kernel"]
        assert len(kernel.sharding.device_set) == len(jax.devices())
        assert kernel.addressable_shards[0].data.shape[0] == 16 // len(jax.devices())
        checkpoints.save(step, state, META)
    print(json.dumps([len(jax.devices()), params_sha256(state["params"]), checksums(state)]))
    """
    lines = []
    for step, devices in ((1, 1), (2, 8), (3, 1)):
        done = run(script, tmp_path / "checkpoints", step, devices=devices)
        assert done.stderr == ""
        lines.append(json.loads(done.stdout))
    assert [line[0] for line in lines] == [1, 8, 1]
    assert lines[0][1:] == lines[1][1:] == lines[2][1:]
    assert lines[0][1] == params_sha256(make_params(5))


def test_params_sha256_sees_every_part():
    params = make_params()
    digest = params_sha256(params)
    assert digest == params_sha256({"head": params["head"], "encoder": params["encoder"]})
    renamed = {"encoder": params["encoder"], "tail": params["head"]}
    shaped = {**params, "encoder": {**params["encoder"], "bias": jnp.zeros((64, 1))}}
    typed = {**params, "encoder": {**params["encoder"], "bias": jnp.zeros(64, jnp.int32)}}
    signed = {**params, "encoder": {**params["encoder"], "bias": -jnp.zeros(64)}}
    assert len({digest, *map(params_sha256, (renamed, shaped, typed, signed))}) == 5


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint32", "int8", "bool"])
def test_checksum_sees_each_bit_and_each_place(dtype):
    rng = np.random.default_rng(0)
    value = np.asarray(jnp.asarray(rng.integers(0, 100, (5, 3))).astype(dtype))
    bits = 1 if dtype == "bool" else 8 * value.itemsize

    def flipped(*places, bit):
        changed = value.copy()
        raw = changed.reshape(-1).view(np.uint8)
        for place in places:
            raw[place * value.itemsize + bit // 8] ^= 1 << bit % 8
        return changed

    harmed = [flipped(place, bit=bit) for place in range(15) for bit in range(bits)]
    # Both signs, of any two: with a sum of products these would cancel.
    harmed += [flipped(0, place, bit=bits - 1) for place in range(1, 15)]
    if dtype != "bool":
        harmed.append(value[::-1])
    wanted = checksums(jnp.asarray(value))
    assert all(checksums(jnp.asarray(x)) != wanted for x in harmed)
