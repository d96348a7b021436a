"""Data sets of TensorFlow Datasets (without TensorFlow) and of Hugging Face's `datasets`.

Class labels become their names (an unlabelled -1 becomes None), so that results read well and do
not depend on either library's numbering; bytes become strings, arrays become lists.
"""

import hashlib
import re
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from bert_ft import paths
from bert_ft.data.columns import BadRows, Table
from bert_ft.errors import InputError


@dataclass(frozen=True)
class Tfds:
    """`tfds:NAME[/CONFIG][:VERSION][:SPLIT]`, read as ArrayRecord through `as_data_source`.

    A SPLIT may be a slice, `train[:10%]`. `data_dir` '' is TFDS's own default directory.
    """

    location: str
    data_dir: str

    def digest(self) -> str:
        """SHA-256 (hex) of the files of the split and of the descriptions beside them."""
        builder, split = self._opened
        wanted = [
            Path(path)
            for name, info in builder.info.splits.items()
            if name in re.findall(r"\w+", split) or split == "all"
            for path in info.filepaths
        ]
        home = Path(builder.data_path)
        described = [*home.glob("*.json"), *home.glob("*.labels.txt")]
        # dataset_info.json is rewritten with the version of the library, and says nothing of rows.
        described = [path for path in described if path.name != "dataset_info.json"]
        digest = hashlib.sha256(f"{builder.info.full_name}:{split}".encode())
        for path in sorted(described) + sorted(wanted):
            digest.update(path.name.encode() + _sha256(path))
        return digest.hexdigest()

    def tables(self, bad: BadRows) -> list[tuple[str, Table]]:
        builder, split = self._opened
        uri = f"tfds:{self.location}"
        try:
            source = builder.as_data_source(split=split)
            rows = [_python(row) for row in source]
        except NotImplementedError:
            raise InputError(
                f"{uri}: the copy in {builder.data_path} is not ArrayRecord; {self._advice}"
            ) from None
        except Exception as error:
            raise InputError(f"{uri}: {_first_line(error)}") from None
        features = builder.info.features
        columns = {name: [_named(row[name], features[name]) for row in rows] for name in features}
        return [(uri, Table(_with_answers(columns), None))]

    @property
    def _advice(self) -> str:
        place = f" --data_dir={self.data_dir}" if self.data_dir else ""
        name = self.location.split(":")[0]
        return (
            "prepare it once where TensorFlow is installed: "
            f"tfds build {name} --file_format=array_record{place}, and give data_dir="
        )

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        uri = f"tfds:{self.location}"
        name_version_split = r"([^:]+)(?::(\d+\.[\d*]+\.[\d*]+))?(?::([A-Za-z_].*))?"
        found = re.fullmatch(name_version_split, self.location)
        if not found:
            raise InputError(f"{uri}: accepted: tfds:NAME[/CONFIG][:VERSION][:SPLIT]")
        try:
            import tensorflow_datasets as tfds
        except ImportError as error:
            raise InputError(f"{uri}: needs tensorflow-datasets: {error}") from None
        name, version, split = found.groups()
        if paths.is_remote(self.data_dir):
            raise InputError(
                f"{uri}: data_dir={self.data_dir}: ArrayRecord is read from a local disk; copy it "
                f"there: gcloud storage cp -r {self.data_dir} DIR"
            )
        options = {"data_dir": str(Path(self.data_dir).expanduser())} if self.data_dir else {}
        try:
            builder = tfds.builder(f"{name}:{version}" if version else name, **options)
            if not builder.is_prepared():
                options["file_format"] = "array_record"
                builder = tfds.builder(builder.info.full_name, **options)
                builder.download_and_prepare()
        except Exception as error:
            # Most builders' code imports TensorFlow; one already prepared on disk needs no code.
            raise InputError(f"{uri}: {_first_line(error)}; {self._advice}") from None
        splits = list(builder.info.splits)
        if split is None and len(splits) != 1:
            raise InputError(f"{uri}: name a split, like {uri}:{splits[0]}; it has {splits}")
        return builder, split or splits[0]


@dataclass(frozen=True)
class HuggingFace:
    """`hf:NAME[/CONFIG][:SPLIT]`, or a directory: written by `save_to_disk`, or of data files.

    `A/B` is first looked for as user A's set B, then as configuration B of the set A; `A/B/C` is
    configuration C.
    """

    location: str

    def digest(self) -> str:
        """SHA-256 (hex) of the split's Arrow files, or of the library's own fingerprint."""
        data = self._opened
        digest = hashlib.sha256(f"{data.split}:{len(data)}:{data.features}".encode())
        for file in data.cache_files:
            digest.update(_sha256(Path(file["filename"])))
        if not data.cache_files:
            digest.update(data._fingerprint.encode())
        return digest.hexdigest()

    def tables(self, bad: BadRows) -> list[tuple[str, Table]]:
        data = self._opened
        columns = {
            name: [_named(value, data.features[name]) for value in values]
            for name, values in data.to_dict().items()
        }
        return [(f"hf:{self.location}", Table(_with_answers(columns), None))]

    @cached_property
    def _opened(self) -> Any:
        uri = f"hf:{self.location}"
        found = re.fullmatch(r"([^:]+)(?::([A-Za-z_].*))?", self.location)
        if not found:
            raise InputError(f"{uri}: accepted: hf:NAME[/CONFIG][:SPLIT]")
        try:
            import datasets
        except ImportError:
            raise InputError(f"{uri}: needs datasets: pip install 'bert_ft[hf]'") from None
        name, split = found.groups()
        try:
            data = _load(datasets, name, split)
        except InputError:
            raise
        except Exception as error:
            raise InputError(f"{uri}: {type(error).__name__}: {_first_line(error)}") from None
        if isinstance(data, dict):
            if split is None and len(data) == 1:
                return next(iter(data.values()))
            if split not in data:
                seen = f"no split {split!r}" if split else "name a split"
                raise InputError(f"{uri}: {seen}; it has {', '.join(data)}")
            return data[split]
        return data


def _load(datasets: Any, name: str, split: str | None) -> Any:
    path = Path(name).expanduser()
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        data = datasets.load_from_disk(str(path))
        if split and not isinstance(data, dict) and split != str(data.split):
            told = f"saved as one set, without splits; leave out :{split}"
            raise InputError(f"hf:{name}:{split}: {told}")
        return data
    if path.is_dir():
        return datasets.load_dataset(str(path), split=split)
    if name.startswith(("/", "./", "../", "~")):
        raise FileNotFoundError("no such directory")
    parts = name.split("/")
    if len(parts) == 3:
        return datasets.load_dataset("/".join(parts[:2]), parts[2], split=split)
    try:
        return datasets.load_dataset(name, split=split)
    except Exception:
        if len(parts) != 2:
            raise
        with suppress(Exception):
            return datasets.load_dataset(*parts, split=split)
        raise


def _python(value: Any) -> Any:
    """NumPy and bytes -> Python values."""
    if isinstance(value, dict):
        return {key: _python(inner) for key, inner in value.items()}
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, list | tuple):
        return [_python(inner) for inner in value]
    if hasattr(value, "tolist"):
        return _python(value.tolist())
    return value


def _named(value: Any, feature: Any) -> Any:
    """Replaces class numbers by names, at any depth. Both libraries spell features alike."""
    if type(feature).__name__ == "ClassLabel":
        if isinstance(value, list):
            return [_named(number, feature) for number in value]
        if value is None or value < 0:
            return None
        return feature.names[value] if feature.names else value
    if isinstance(value, dict) and hasattr(feature, "items"):
        return {key: _named(inner, feature[key]) for key, inner in value.items()}
    inner_feature = getattr(feature, "feature", None)
    if inner_feature is None:
        return value
    if isinstance(value, dict):
        return {
            key: [_named(item, inner_feature[key]) for item in inner]
            for key, inner in value.items()
        }
    return [_named(item, inner_feature) for item in value] if isinstance(value, list) else value


def _with_answers(columns: dict[str, list]) -> dict[str, list]:
    """SQuAD's answers, in both libraries a dict of lists, as `files:` gives them."""
    keys = {"text", "answer_start"}
    answers = columns.get("answers")
    if not answers or not all(isinstance(a, dict) and keys <= a.keys() for a in answers):
        return columns
    listed = [
        [
            {"text": text, "start": start}
            for text, start in zip(answer["text"], answer["answer_start"], strict=True)
        ]
        for answer in answers
    ]
    return {**columns, "answers": listed}


def _sha256(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else repr(error)
