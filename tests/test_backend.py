"""A fall-back to the CPU that nobody asked for is an error."""

import types

import pytest
import small

from bert_ft.errors import InputError
from bert_ft.train import backend
from bert_ft.train.backend import meant, require_backend


def device(platform: str):
    return types.SimpleNamespace(platform=platform, device_kind=platform)


def machine(root, *, tpu=False, gpu=False):
    card = root / "sys/bus/pci/devices/0000:00:04.0"
    card.mkdir(parents=True)
    (card / "vendor").write_text("0x1ae0\n" if tpu else "0x8086\n")
    (root / "dev").mkdir()
    if gpu:
        (root / "dev/nvidia0").write_text("")
    return root


@pytest.fixture
def no_plugins(monkeypatch):
    monkeypatch.setattr(backend.importlib.util, "find_spec", lambda name: None)


def test_what_was_meant(tmp_path, no_plugins):
    plain = machine(tmp_path / "plain")
    assert meant("", {}, plain) is None
    assert meant("tpu", {}, plain) is None  # JAX says so itself wherever libtpu is installed
    assert meant("", {"TPU_WORKER_ID": "0"}, plain) == (
        "tpu", "TPU_WORKER_ID is set, as on a TPU machine",
    )  # fmt: skip
    left = "WARNING: could not determine TPU worker number, please set env var"
    assert meant("", {"TPU_WORKER_ID": left}, plain) is None  # by libtpu, in a parent process
    assert meant("tpu", {"JAX_PLATFORMS": "tpu,cpu"}, plain) is not None
    assert meant("cuda", {"JAX_PLATFORMS": "cuda,cpu"}, plain) is not None
    tpu, gpu = machine(tmp_path / "tpu", tpu=True), machine(tmp_path / "gpu", gpu=True)
    assert meant("", {}, tpu) == ("tpu", "this machine has a TPU")
    found = meant("", {}, gpu)
    assert found is not None and found[0] == "gpu" and "nvidia0" in found[1]
    assert meant("", {"CUDA_VISIBLE_DEVICES": ""}, gpu) is None
    for root in (plain, tpu, gpu):
        assert meant("cpu", {"JAX_PLATFORMS": "cpu"}, root) is None


def test_a_plugin_without_its_device(tmp_path, monkeypatch):
    monkeypatch.setattr(backend.importlib.util, "find_spec", lambda n: n == "jax_cuda12_plugin")
    assert meant("", {}, machine(tmp_path)) == ("gpu", "jax_cuda12_plugin is installed")


def test_refused(monkeypatch):
    with pytest.raises(InputError, match=r"config.mesh.backend is 'tpu', but JAX found 'cpu'"):
        require_backend(small.config(mesh__backend="tpu"), device("cpu"))
    monkeypatch.setattr(backend, "meant", lambda *_: ("tpu", "this machine has a TPU"))
    monkeypatch.setattr("jax._src.xla_bridge._backend_errors", {"tpu": "already in use\nmore"})
    with pytest.raises(InputError) as refused:
        require_backend(small.config(), device("cpu"))
    assert "on the CPU, though this machine has a TPU (already in use); mend that" in str(
        refused.value
    )
    require_backend(small.config(mesh__backend="cpu"), device("cpu"))
    require_backend(small.config(), device("tpu"))
