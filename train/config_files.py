"""YAML files and dotted overrides become one validated configuration, or one list of all faults."""

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, cast, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from train.errors import ConfigError

Model = TypeVar("Model", bound=BaseModel)
Tree = dict[str, Any]

FLOAT = re.compile(r"[-+]?(\d[\d_]*)(\.[\d_]*)?([eE][-+]?\d+)|[-+]?\.\d+([eE][-+]?\d+)?")


RENAMED: Mapping[str, str] = {
    "data.cache": "storage.cache",
    "data.cache_gib": "storage.cache_gib",
    "data.endpoint_url": "storage.endpoint_url",
    "data.layouts": "data.span_choices",
    "data.read_ahead_shards": "storage.read_ahead_files",
    "data.retry_budget_seconds": "storage.retry_budget_seconds",
    "data.timeout_seconds": "storage.timeout_seconds",
}
"""Keys of earlier versions by what they are called now. Users are told; what runs and checkpoints
have stored is translated."""


class _Loader(yaml.SafeLoader):
    """YAML that reads `3e-4` as a number; PyYAML takes it for a string."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> Tree:
    keys = [loader.construct_object(key) for key, _ in node.value]
    repeated = sorted({str(key) for key in keys if keys.count(key) > 1})
    if repeated:
        raise yaml.constructor.ConstructorError(
            None, None, f"{', '.join(repeated)} stands there twice", node.start_mark
        )
    return cast(Tree, loader.construct_mapping(node, deep=True))


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(rf"^(?:{FLOAT.pattern})$"), list("-+0123456789.")
)


def load(model: type[Model], arguments: Sequence[str]) -> Model:
    """Merge the arguments left to right and validate the result.

    Args:
        model: configuration class to fill.
        arguments: YAML files and `dotted.key=value` overrides; overrides win over files. A file's
            `include:` names files beside it that are merged before it.

    Raises:
        ConfigError: with every fault, each at its full path with the nearest valid key.
    """
    tree: Tree = {}
    faults: list[str] = []
    overrides = [argument for argument in arguments if _is_override(argument)]
    for argument in arguments:
        if not _is_override(argument):
            try:
                tree = merge(tree, read(Path(argument)))
            except ConfigError as error:
                faults.append(str(error))
    for override in overrides:
        key, _, text = override.partition("=")
        try:
            tree = merge(tree, _nested(key.split("."), yaml.load(text, _Loader)))
        except yaml.YAMLError:
            faults.append(f"{key}: cannot read {text!r} as a YAML value")
    try:
        config = model.model_validate(tree)
    except ValidationError as error:
        # What a file that could not be read would have said is not missing.
        whole = not faults
        faults += [
            _explain(model, tree, fault)
            for fault in error.errors()
            if whole or fault["type"] != "missing"
        ]
    else:
        if not faults:
            return config
    raise ConfigError("\n".join(faults))


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
    try:
        return model.model_validate(stored)
    except ValidationError:
        raise ConfigError(
            f"{place} has a configuration that this version does not understand: choose another "
            "place, or use the version that wrote it"
        ) from None


def read(path: Path, *, above: tuple[Path, ...] = ()) -> Tree:
    """One YAML file with its includes merged before it."""
    if path in above:
        raise ConfigError(f"{path}: includes itself")
    try:
        loaded = yaml.load(path.read_text(), _Loader)
    except FileNotFoundError:
        beside = path.parent.iterdir() if path.parent.is_dir() else ()
        near = get_close_matches(path.name, [file.name for file in beside], n=1)
        hint = f"; did you mean {path.parent / near[0]}?" if near else ""
        raise ConfigError(f"{path}: there is no such file{hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: is not YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(loaded, dict | None):
        raise ConfigError(f"{path}: must hold keys and values at its top")
    tree = cast(Tree, loaded or {})
    included: Any = tree.pop("include", [])
    if not isinstance(included, list) or not all(isinstance(name, str) for name in included):
        raise ConfigError(f"{path}: include must be a list of files")
    merged: Tree = {}
    for name in cast(list[str], included):
        merged = merge(merged, read(path.parent / name, above=(*above, path)))
    return merge(merged, tree)


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
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, width=100)


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
    return "=" in argument and not Path(argument).is_file()


def _nested(keys: Sequence[str], value: Any) -> Tree:
    for key in reversed(keys):
        value = {key: value}
    return cast(Tree, value)


def _explain(model: type[BaseModel], tree: Tree, fault: Any) -> str:
    message = str(fault["msg"]).removeprefix("Value error, ")
    if not fault["loc"]:  # a check of the whole, which says itself where
        return message
    *above, last = fault["loc"]
    path: list[str] = []
    section: Any = tree
    tag: Any = None
    for part in above:
        try:
            section, tag = section[part], None
        except (LookupError, TypeError):
            tag = part  # what is not in the document names the kind of a union
        else:
            path.append(str(part))
    where = ".".join([*path, str(last)])
    if fault["type"] == "extra_forbidden" and where in RENAMED:
        return f"{where}: is called {RENAMED[where]} now"
    if fault["type"] == "extra_forbidden":
        return f"{where}: no such key{_suggestion(model, path, str(last), tag)}"
    if fault["type"] == "missing":
        return f"{where}: is missing"
    got = fault.get("input")
    shown = f" (got {got!r})" if isinstance(got, str | int | float | bool | None) else ""
    return f"{where}: {message[0].lower()}{message[1:]}{shown}"


def _suggestion(model: type[BaseModel], path: Sequence[str], key: str, tag: Any) -> str:
    keys = list(_keys(model))
    siblings = [
        found[-1]
        for found, owner in keys
        if len(found) == len(path) + 1
        and all(part in (given, "NAME") for part, given in zip(found, path, strict=False))
        and (tag is None or tag in get_args(owner.model_fields["kind"].annotation))
    ]

    def shared(found: Sequence[str]) -> int:
        pairs = enumerate(zip(found, [*path, ""], strict=False))
        return next((i for i, (part, given) in pairs if part not in (given, "NAME")), len(path))

    # Of keys of the same name, the one that has most of the way in common.
    by_way = sorted((found for found, _ in reversed(keys)), key=shared)
    named = {found[-1]: ".".join(found) for found in by_way}
    near = get_close_matches(key, siblings, n=1, cutoff=0.6)
    # Near matches of a key as short as `lr` are chance.
    if key in named and (not near or len(key) <= 3):
        best = named[key]
    elif near:
        best = ".".join([*path, near[0]])
    else:
        best = "".join(named[name] for name in get_close_matches(key, named, n=1, cutoff=0.75))
    if best:
        return f"; did you mean {best}?"
    return f"; valid here: {', '.join(siblings)}" if siblings else ""


def _members(annotation: Any) -> list[Any]:
    """The concrete types an annotation allows."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _members(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return [m for part in get_args(annotation) for m in _members(part)]
    return [annotation]


def _keys(
    annotation: Any, above: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], type[BaseModel]]]:
    """Every key that there may be, as its path, with its owner; NAME stands for what users name."""
    for member in _members(annotation):
        if get_origin(member) is dict:
            yield from _keys(get_args(member)[1], (*above, "NAME"))
        elif isinstance(member, type) and issubclass(member, BaseModel):
            for name, field in member.model_fields.items():
                yield (*above, name), member
                yield from _keys(field.annotation, (*above, name))
