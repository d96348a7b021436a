"""No silent fall-back to the CPU: JAX warns where an accelerator fails to start, and goes on."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from bert_ft.command_line import WITHOUT_TPU
from bert_ft.errors import InputError, first_line

TPU_SIGNS = ("TPU_WORKER_ID", "TPU_WORKER_HOSTNAMES", "TPU_ACCELERATOR_TYPE", "COLAB_TPU_ADDR")
GPU_PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin", "jax_rocm60_plugin", "jax_rocm7_plugin")
TPU_VENDOR = "0x1ae0"  # Google's PCI vendor


def require_backend(config: ConfigDict, device: Any) -> None:
    """Raises InputError where the first device is not of config.mesh.backend, or where that is ''
    and JAX runs on the CPU of a machine on which something else was meant to be used."""
    wanted, found = config.mesh.backend, device.platform
    if wanted and found != wanted:
        raise InputError(
            f"config.mesh.backend is {wanted!r}, but JAX found {found!r} ({device}){_why(wanted)}"
        )
    if wanted or found != "cpu":
        return
    first = (jax.config.values["jax_platforms"] or "").split(",")[0]
    sign = meant(first, os.environ)
    if sign is not None:
        raise InputError(
            f"JAX runs on the CPU, though {sign[1]}{_why(sign[0])}; mend that, or ask for the "
            "CPU with --config.mesh.backend=cpu or JAX_PLATFORMS=cpu"
        )


def meant(
    first: str, environment: Mapping[str, str], root: Path = Path("/")
) -> tuple[str, str] | None:
    """(backend, by what one sees that it was meant to be used), or None. `first` is the first of
    JAX_PLATFORMS. libtpu alone is no sign: a preflight uses it where there is no TPU."""
    if first == "cpu":
        return None
    if first and first != "tpu":
        return "gpu", f"JAX_PLATFORMS begins with {first!r}"
    vendors = (root / "sys/bus/pci/devices").glob("*/vendor")
    if any(_text(path) == TPU_VENDOR for path in vendors):
        return "tpu", "this machine has a TPU"
    if named := next((n for n in TPU_SIGNS if _says(n, environment)), None):
        return "tpu", f"{named} is set, as on a TPU machine"
    if "JAX_PLATFORMS" in environment and first == "tpu":
        return "tpu", "JAX_PLATFORMS begins with 'tpu'"
    if environment.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):  # asked for, in the usual way
        return None
    cards = [*(root / "dev").glob("nvidia[0-9]*"), *(root / "dev").glob("kfd")]
    if cards:
        return "gpu", f"this machine has a GPU ({cards[0]})"
    if plugin := next((p for p in GPU_PLUGINS if importlib.util.find_spec(p)), None):
        return "gpu", f"{plugin} is installed"
    return None


def _says(name: str, environment: Mapping[str, str]) -> bool:
    """Whether a variable is set by someone: where there is no TPU libtpu leaves "WARNING: could not
    determine …" in it, which the processes that are started later inherit."""
    value = environment.get(name, "")
    return value not in ("", WITHOUT_TPU.get(name)) and not value.startswith("WARNING: ")


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _why(backend: str) -> str:
    """What JAX itself says of a backend that did not start."""
    from jax._src import xla_bridge

    names = {"gpu": ("cuda", "rocm", "gpu")}.get(backend, (backend,))
    said = getattr(xla_bridge, "_backend_errors", {})
    found = next((str(said[name]) for name in names if name in said), "")
    return f" ({first_line(RuntimeError(found))})" if found else ""
