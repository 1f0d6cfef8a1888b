"""Reading and writing the folders that outlive a run, so that none is ever half-written or half-read."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

CLAIM = "run.json"
"""Says what a folder holds the results of."""


@contextmanager
def write_folder(folder: Path) -> Iterator[Path]:
    """A new folder to write files into; they are moved to `folder` when the block ends well, and dropped otherwise.

    Files of other names that `folder` already has stay as they are.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    try:
        yield new
        folder.mkdir(exist_ok=True)
        # json last: who finds it finds the rest
        for path in sorted(new.iterdir(), key=lambda path: path.suffix == ".json"):
            path.replace(folder / path.name)
    finally:
        shutil.rmtree(new, ignore_errors=True)


@contextmanager
def write_file(path: Path) -> Iterator[Path]:
    """A temporary path to write to; it becomes `path` when the block ends well, and is removed otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield new
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


def claim_folder(folder: Path, stage: str, settings: Mapping[str, Any], *, renew: bool = False) -> None:
    """Make a folder ours by writing `run.json`, or make sure that it already is, for the same stage and settings.

    The file also says which version and which command line wrote it. A folder with nothing else in it is as good as a
    new one. With `renew`, the folder of a run of the same stage is taken over whatever its settings.

    Raises ValueError when it holds results of other settings, or files that are not ours.
    """
    path = folder / CLAIM
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"'{folder}' is a file; expected a folder")
    mine = {"stage": stage} | json.loads(json.dumps(settings))
    if path.exists() and any(other != path for other in folder.iterdir()):
        theirs = {name: value for name, value in read_json(path).items() if name not in ("version", "command")}
        for name in ("stage",) if renew else (*mine, *theirs):
            if mine.get(name) != theirs.get(name):
                raise ValueError(
                    f"'{folder}' holds results with {name} {theirs.get(name)!r}, not {mine.get(name)!r}; "
                    f"expected the same again, or another folder"
                )
        if theirs == mine:
            return
    elif not path.exists() and folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"'{folder}' holds other files; expected an empty folder, a new one, or one of these results")
    origin = {"version": version("saeuron"), "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])}
    with write_file(path) as new:
        new.write_text(json.dumps(mine | origin, indent=2) + "\n")


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file. Raises OSError when there is no room for it."""
    try:
        save_file({name: value.contiguous() for name, value in tensors.items()}, path, metadata=metadata)
    except SafetensorError as error:
        raise OSError(f"cannot write '{path}': {error}") from None


def read_tensors(path: Path, what: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises ValueError, naming the file and `what` was expected, otherwise."""
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"'{path}' is damaged or no {what}: {error}") from None


def read_json(path: Path) -> dict[str, Any]:
    """The object in a json file. Raises ValueError, naming the file, when there is none."""
    if not path.is_file():
        raise ValueError(f"no file '{path}'")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"'{path}' is not json: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"'{path}': expected a json object, found {type(value).__name__}")
    return value


def resolve_folder(name: Path | str, *, revision: str | None = None, allow_patterns: list[str] | None = None) -> Path:
    """The folder `name`, or the hub repository `name` downloaded.

    Raises ValueError when it is neither, or when the hub does not answer.
    """
    folder = Path(name)
    if folder.is_dir():
        return folder
    if folder.is_absolute() or str(name).count("/") != 1 or str(name).startswith((".", "~")):
        raise ValueError(f"no folder '{name}'; expected a folder or a hub id such as 'user/repository'")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(name), revision=revision, allow_patterns=allow_patterns))
    except Exception as error:  # the hub's client raises dozens of unrelated types
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"no folder '{name}', and the hub did not give '{name}': {reason}") from None


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write nested dicts of tensors and json values to one safetensors file, atomically; `load_state` reads it."""
    tensors: dict[str, Tensor] = {}

    def split(value: Any, name: str) -> Any:
        if isinstance(value, Mapping):
            return {key: split(entry, f"{name}/{key}") for key, entry in value.items()}
        if isinstance(value, Tensor):
            tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
            return {_TENSOR: name}
        return value

    rest = json.dumps(split(state, ""))
    with write_file(path) as new:
        write_tensors(new, tensors, {"state": rest})


def load_state(path: Path) -> dict[str, Any]:
    """What `save_state` wrote. Raises ValueError, naming the file, when it is damaged or something else."""
    try:
        with safe_open(path, "pt") as file:
            rest = json.loads((file.metadata() or {})["state"])

            def join(value: Any) -> Any:
                if isinstance(value, dict):
                    if _TENSOR in value:
                        return file.get_tensor(value[_TENSOR])
                    return {key: join(entry) for key, entry in value.items()}
                return value

            return join(rest)
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise ValueError(f"'{path}' is damaged or no checkpoint of saeuron: {error}") from None


_TENSOR = "__tensor__"
