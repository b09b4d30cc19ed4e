"""YAML files and dotted overrides become one validated configuration, or one list of all faults."""

import copy
import os
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, TypeVar, cast

from pydantic import BaseModel, ValidationError

from train.errors import ConfigError, UserError
from train.explain import BEFORE, RENAMED, in_words, shortened
from train.plain_yaml import MOST_BYTES, MOST_LEVELS, Tree, YamlError, parse
from train.plain_yaml import dump as dump_yaml
from train.storage.local import open_file
from train.storage.path import local_path

Model = TypeVar("Model", bound=BaseModel)

INCLUDE: Final = "include"


def load(model: type[Model], arguments: Sequence[str]) -> Model:
    """Merge the arguments left to right and validate the result.

    Args:
        model: configuration class to fill.
        arguments: YAML files and `dotted.key=value` overrides; overrides win over files. A file's
            `include:` names files beside it that are merged before it.

    Raises:
        ConfigError: with every fault, each at its full path with the nearest valid key; or it
            is too large to be read back from where a run stores it.
    """
    tree: Tree = {}
    faults: list[str | Mapping[str, Any]] = []
    overrides = [argument for argument in arguments if _is_override(argument)]
    files = Files()
    for argument in arguments:
        if not _is_override(argument):
            try:
                tree = merge(tree, files.read(local_path(argument)))
            except UserError as error:
                faults.append(str(error))
    for override in overrides:
        try:
            tree = merge(tree, _overridden(override))
        except ConfigError as error:
            faults.append(str(error))
    try:
        config = model.model_validate(tree)
    except ValidationError as error:
        # What a file that could not be read would have said is not missing.
        whole = not faults
        faults += [fault for fault in error.errors() if whole or fault["type"] != "missing"]
    else:
        if not faults:
            try:
                parse(dump(config).encode())
            except YamlError as error:
                raise ConfigError(f"with all defaults, as runs store it, it {error}") from None
            return config
    raise ConfigError(in_words(model, faults))


def from_stored(model: type[Model], stored: Any, *, place: str) -> Model:
    """A configuration that a run or a checkpoint has stored, of this version or of one before.

    Every stored configuration comes in through this door.

    Args:
        model: configuration class to fill.
        stored: the document, as YAML or JSON has it.
        place: what to call the place where it is stored.

    Raises:
        ConfigError: this version does not understand it.
    """
    if isinstance(stored, dict):
        stored = copy.deepcopy(cast(Tree, stored))
        for old, new in RENAMED.items():
            section, _, key = old.partition(".")
            holder = stored.get(section)
            if isinstance(holder, dict) and key in holder:
                stored = merge(_nested(new.split("."), holder.pop(key)), stored)
        for key, value in BEFORE.items():
            section, _, name = key.partition(".")
            holder = stored.get(section)
            if isinstance(holder, dict):
                holder.setdefault(name, value)
    try:
        return model.model_validate(stored)
    except ValidationError:
        raise ConfigError(
            f"{place} has a configuration that this version does not understand: choose another "
            "place, or use the version that wrote it"
        ) from None


class Files:
    """Files of a configuration, each read once, however often it is included."""

    def __init__(self) -> None:
        self._merged: dict[str, Tree] = {}

    def read(self, path: Path, *, above: tuple[str, ...] = ()) -> Tree:
        """A file with its includes merged before it.

        Args:
            path: of the file.
            above: the files that include it, by their real paths.

        Raises:
            ConfigError: it is not there or no such YAML, or includes itself.
        """
        name = os.path.realpath(path)
        if name in above:
            raise ConfigError(f"{path}: includes itself")
        if len(above) > MOST_LEVELS:
            raise ConfigError(f"{path}: is included over more than {MOST_LEVELS} files")
        if name not in self._merged:
            tree = read_file(path)
            included = tree.pop(INCLUDE, [])
            if not isinstance(included, list) or not all(isinstance(i, str) for i in included):
                raise ConfigError(f"{path}: include must be a list of files")
            merged: Tree = {}
            for other in cast(list[str], included):
                beside = path.parent / other
                if not os.path.lexists(beside):
                    beside = path.parent / local_path(other)
                merged = merge(merged, self.read(beside, above=(*above, name)))
            self._merged[name] = merge(merged, tree)
        return self._merged[name]


def read_file(path: Path, *, is_stored: bool = False) -> Tree:
    """The keys and values of one file.

    Args:
        path: of the file; a user may also name a pipe, as shells make them.
        is_stored: whether it can only be a file, which a run has written.

    Raises:
        ConfigError: it cannot be read, or holds something else.
    """
    try:
        # One without a name is the output of a command: `<(…)` in a shell.
        if path.is_fifo() and path.parts[:2] not in (("/", "dev"), ("/", "proc")):
            raise ConfigError(f"{path}: is a named pipe, which may never answer: name a file")
        with os.fdopen(open_file(path), "rb") if is_stored else path.open("rb") as file:
            document = parse(file.read(MOST_BYTES + 1))
    except FileNotFoundError:
        beside = os.listdir(path.parent) if path.parent.is_dir() else ()
        near = get_close_matches(path.name, beside, n=1)
        hint = f"; did you mean {path.parent / near[0]}?" if near else ""
        raise ConfigError(f"{path}: there is no such file{hint}") from None
    except (OSError, YamlError) as error:
        reason = (
            error if isinstance(error, YamlError) else f"cannot be read: {error.strerror or error}"
        )
        raise ConfigError(f"{path}: {reason}") from None
    if not isinstance(document, dict | None):
        raise ConfigError(f"{path}: must hold keys and values at its top")
    return cast(Tree, document or {})


def merge(base: Tree, over: Tree) -> Tree:
    """`base` with `over` on top: mappings merge key by key, anything else is replaced.

    A mapping whose `kind` changes is replaced whole: the keys of one kind mean nothing to another.
    """
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            old, value = cast(Tree, old), cast(Tree, value)
            other_kind = "kind" in value and value["kind"] != old.get("kind", value["kind"])
            merged[key] = value if other_kind else merge(old, value)
        else:
            merged[key] = value
    return merged


def dump(config: BaseModel) -> str:
    """The resolved configuration as YAML."""
    return dump_yaml(config.model_dump(mode="json"))


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted paths at which two trees differ, with both values."""
    found: list[str] = []
    for key in [*old, *(key for key in new if key not in old)]:
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += differences(cast(Tree, a), cast(Tree, b), f"{prefix}{key}.")
        elif a != b:
            found.append(f"{prefix}{key}: {a!r} there, {b!r} here")
    return found


def _is_override(argument: str) -> bool:
    return "=" in argument and not os.path.isfile(argument)


def _overridden(override: str) -> Tree:
    key, _, text = override.partition("=")
    keys, shown = key.split("."), shortened(repr(key)[1:-1], 80)
    if not key.isprintable() or not all(keys) or len(keys) > MOST_LEVELS:
        raise ConfigError(f"{shown or '='}: is no key: write key=value, such as optim.lr=3e-4")
    try:
        return _nested(keys, parse(text, comments=False))
    except YamlError as error:
        raise ConfigError(
            f"{shown}: cannot read {shortened(repr(text), 80)} as a YAML value: {error}"
        ) from None


def _nested(keys: Sequence[str], value: Any) -> Tree:
    for key in reversed(keys):
        value = {key: value}
    return cast(Tree, value)
