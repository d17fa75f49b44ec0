"""Reads published MAE files: tensors one at a time, configuration, licence.

safetensors files are read without torch.  Torch files are read with ``weights_only=True`` and an
allow-list of one class, so no code in them is executed.
"""

import argparse
import contextlib
import functools
import importlib
import json
import pickle
import re
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from cinemae_jax.data import kinds as downloads
from weights_convert.encoder_mapping import LAYOUTS

MODEL_FILES = ("model.safetensors", "pytorch_model.bin")
FLOATS = {"float64", "float32", "float16", "bfloat16"}
FACEBOOK_LICENCE = "CC BY-NC 4.0, as the facebookresearch/mae repository states"
NO_LICENCE = "not stated by the source"
OFFICIAL_NAME = re.compile(r"mae_(visualize|pretrain)_vit_(base|large|huge)")

MAE_KINDS = ("vit_mae",)

_LICENCE_ENTRY = re.compile(r"^(license|license_name):\s*(\S+)", re.MULTILINE)
_SAFETENSORS_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
WRAPPERS = ("module.", "_orig_mod.")
_IN_DICT = ("model", "state_dict")  # entries under which training scripts store the tensors


class ConversionError(ValueError):
    """A source that is refused; the message names the file, every problem, and the way out."""


@dataclass(frozen=True)
class Source:
    """An opened file; tensors are read on demand.

    Attributes:
      path: of the file with the tensors.
      name: for the header of the converted file.
      shapes, dtypes: by tensor name in the file; dtypes by their NumPy names.
      tensor: reads one tensor by its name, as float32.
      config: contents of config.json; empty without one.
      args: arguments of the training run; empty if the file does not hold them.
      strays: entries of the state dict that are not tensors.
      licence: as the source states it.
    """

    path: Path
    name: str
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, str]
    tensor: Callable[[str], np.ndarray]
    config: Mapping[str, Any] = field(default_factory=dict)
    args: Mapping[str, Any] = field(default_factory=dict)
    strays: tuple[str, ...] = ()
    licence: str = NO_LICENCE


def need(module: str, purpose: str = "") -> ModuleType:
    """Imports a package of the parity extra.

    Raises:
      ConversionError: naming the purpose and the extra, if the package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConversionError(
            f"the package {module} is needed{purpose} ({error}): pip install 'cinemae-jax[parity]'"
        ) from error


@contextlib.contextmanager
def opened(
    path: Path, name: str | None = None, *, kinds: Collection[str] = MAE_KINDS
) -> Iterator[Source]:
    """Opens a file, or a folder with config.json and one of ``MODEL_FILES``.

    Args:
      path: of the file or folder.
      name: of the source in the header; by default the file's.
      kinds: model types that config.json may name.

    Raises:
      ConversionError: if the file is missing, damaged, or not a state dict.
    """
    file = _model_file(path)
    about = {
        "name": name or file.name,
        "config": _config(file, kinds, required=path.is_dir()),
        "licence": _licence(file),
    }
    with open(file, "rb") as start:
        head = start.read(downloads.LOOKED_AT)
    if failed := downloads.failed_download(head):
        raise ConversionError(f"{file}: {failed}")
    if head[8:9] == b"{":
        with _safetensors(file, about) as source:
            yield _unwrapped(source)
    else:
        yield _unwrapped(_torch(file, about))


def _unwrapped(source: Source) -> Source:
    """The tensors without the prefix of DataParallel or torch.compile, if all of them have it."""
    for prefix in WRAPPERS:
        if source.shapes and all(name.startswith(prefix) for name in source.shapes):
            return replace(
                source,
                shapes={k.removeprefix(prefix): shape for k, shape in source.shapes.items()},
                dtypes={k.removeprefix(prefix): dtype for k, dtype in source.dtypes.items()},
                tensor=functools.partial(_read_wrapped, source, prefix),
            )
    return source


def _read_wrapped(source: Source, prefix: str, name: str) -> np.ndarray:
    return source.tensor(prefix + name)


def download(repository: str, revision: str | None = None) -> tuple[Path, str]:
    """Downloads config, model card and tensors of a Hugging Face repository.

    Args:
      repository: for example ``facebook/vit-mae-large``.
      revision: branch, tag or commit.

    Returns:
      Folder, and the name ``repository@commit``.

    Raises:
      ConversionError: without a network, or if the repository holds none of ``MODEL_FILES``.
    """
    hub = need("huggingface_hub", f" to download {repository}")
    try:
        files = hub.list_repo_files(repository, revision=revision)
        wanted = [f for f in MODEL_FILES if f in files][:1]
        if not wanted:
            raise ConversionError(f"{repository} holds none of {', '.join(MODEL_FILES)}")
        patterns = ["config.json", "preprocessor_config.json", "README.md", *wanted]
        folder = Path(hub.snapshot_download(repository, revision=revision, allow_patterns=patterns))
    except (OSError, RuntimeError, hub.errors.HfHubHTTPError) as error:
        raise ConversionError(
            f"cannot download {repository} ({type(error).__name__}: {error}): check the name and "
            "the network, or download the folder elsewhere and pass it as SRC"
        ) from error
    return folder, f"{repository}@{folder.name}"


def _model_file(path: Path) -> Path:
    if path.is_file():
        return path
    if not path.is_dir():
        raise ConversionError(f"{path} does not exist: pass a published file or its folder")
    for name in MODEL_FILES:
        if (path / name).is_file():
            return path / name
    shards = [
        f"{name}.index.json" for name in MODEL_FILES if (path / f"{name}.index.json").exists()
    ]
    if shards:
        raise ConversionError(
            f"{path} is split into shards ({shards[0]}): save the model as one file"
        )
    raise ConversionError(f"folder {path} holds none of {', '.join(MODEL_FILES)}")


def is_encoder(path: Path) -> bool:
    """Whether the config.json of a folder, or beside a file, names an encoder's model type."""
    config = (path if path.is_dir() else path.parent) / "config.json"
    if not config.is_file() or (path.is_file() and path.name not in MODEL_FILES):
        return False
    try:
        return json.loads(config.read_text(encoding="utf-8"))["model_type"] in LAYOUTS
    except (KeyError, TypeError, ValueError):
        return False  # whoever opens it says what is wrong


def _config(file: Path, kinds: Collection[str], *, required: bool) -> dict[str, Any]:
    path = file.with_name("config.json")
    if not path.is_file():
        if required:
            raise ConversionError(
                f"{path} is missing: download it, too; it states the number of heads and the target"
            )
        return {}
    if file.name not in MODEL_FILES:  # a .pth beside a config.json that is not its own
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConversionError(f"{path} is not JSON: {error}") from error
    kind = config.get("model_type") if isinstance(config, dict) else None
    return config if kind in kinds else _foreign_config(path, config)


def _foreign_config(path: Path, config: Any) -> dict[str, Any]:
    """Ignores timm's config.json, which describes a classifier; refuses other models'."""
    if isinstance(config, dict) and "model_type" not in config:
        return {} if "architecture" in config else config
    kind = config.get("model_type") if isinstance(config, dict) else type(config).__name__
    text = ": it describes a text tower; use a checkpoint that has the image tower"
    raise ConversionError(
        f"{path} has model_type {kind!r}: use the folder of a 'vit_mae', or of an encoder "
        f"({', '.join(LAYOUTS)})" + (text if str(kind).endswith("text_model") else "")
    )


def _licence(file: Path) -> str:
    if OFFICIAL_NAME.match(file.name):
        return FACEBOOK_LICENCE
    card = file.with_name("README.md")
    if file.name in MODEL_FILES and card.is_file():
        front = card.read_text(encoding="utf-8", errors="replace").split("---")
        entries = dict(_LICENCE_ENTRY.findall(front[1] if len(front) > 2 else ""))
        stated = entries.get("license_name") or entries.get("license")  # license: other has a name
        if stated:
            return f"{stated}, as its model card states"
    return NO_LICENCE


@contextlib.contextmanager
def _safetensors(file: Path, about: Mapping[str, Any]) -> Iterator[Source]:
    try:
        with safe_open(file, framework="numpy") as tensors:
            slices = {k: tensors.get_slice(k) for k in tensors.keys()}  # noqa: SIM118
            dtypes = {k: s.get_dtype() for k, s in slices.items()}
            yield Source(
                path=file,
                shapes={k: tuple(s.get_shape()) for k, s in slices.items()},
                dtypes={k: _SAFETENSORS_DTYPES.get(d, d) for k, d in dtypes.items()},
                tensor=lambda k: tensors.get_tensor(k).astype(np.float32, copy=False),
                **about,
            )
    except SafetensorError as error:
        raise ConversionError(
            f"{file} is not a readable safetensors file ({error}): it may be truncated; download "
            "it again and compare its size or sha256 with the publisher's"
        ) from error


def _torch(file: Path, about: Mapping[str, Any]) -> Source:
    content = _load_torch(file)
    args: Any = content.get("args") if isinstance(content, dict) else None
    for key in _IN_DICT:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if not isinstance(content, dict):
        raise ConversionError(f"{file} holds a {type(content).__name__}, not a dict of tensors")
    torch = need("torch")
    tensors = {str(k): v for k, v in content.items() if isinstance(v, torch.Tensor)}
    return Source(
        path=file,
        shapes={k: tuple(v.shape) for k, v in tensors.items()},
        dtypes={k: str(v.dtype).removeprefix("torch.") for k, v in tensors.items()},
        tensor=lambda k: tensors[k].detach().to(torch.float32).numpy(),
        args=vars(args) if isinstance(args, argparse.Namespace) else {},
        strays=tuple(str(k) for k in content if str(k) not in tensors),
        **about,
    )


def _load_torch(file: Path) -> Any:
    torch = need("torch", f" to read {file}, which is not safetensors")
    mapped = zipfile.is_zipfile(file)  # files from before torch 1.6 cannot be memory-mapped
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        raise ConversionError(_unpickling_message(file, str(error))) from error
    except (RuntimeError, EOFError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ConversionError(  # damaged archives raise all of these
            f"{file} is not a readable torch file ({type(error).__name__}: {_first_line(error)}): "
            "it may be truncated; download it again and compare its size with the publisher's"
        ) from error


def _unpickling_message(file: Path, message: str) -> str:
    named = re.search(r"(?:GLOBAL |Unsupported global: GLOBAL )([\w.]+)", message)
    if named:
        return (
            f"{file} would run {named[1]} when read, and was not read: a published MAE file holds "
            "only tensors and argparse.Namespace. If the file is your own, load it with torch and "
            "save torch.save({'model': model.state_dict()}, 'tensors.pth')"
        )
    return (
        f"{file} is neither a safetensors file nor a torch file that can be read safely "
        f"({_first_line(message)}): it may be truncated, or hold more than tensors"
    )


def _first_line(error: object) -> str:
    return next(iter(str(error).splitlines()), "no message")[:200]
