"""Shipped configurations with one or two values changed, and what becomes of each.

Each case is a seed. What `python -m train --print` takes goes on to train on a tiny corpus: sizes
that were not changed are made tiny, everything else stays.
"""

import contextlib
import copy
import faulthandler
import gc
import io
import json
import os
import random
import re
import signal
import socket
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests import warm
from train import __main__ as command
from train import loop
from train.config import RunConfig
from train.config_files import Files, merge
from train.explain import _keys
from train.plain_yaml import dump

ROOT: Final = Path(__file__).parents[2]
LIKE_OTHERS: Final = (
    *("tiny.yaml", "lab.yaml", "fusion.yaml", "masked_patches.yaml", "masked_tubes.yaml"),
    *("replaced_tokens.yaml", "sound_contrast.yaml", "sound_units.yaml"),
)
"""What has its like among the shipped ones: tests/tiny_run.yaml, cpu.yaml, naming.yaml; and what
trains an encoder alone on media that are not there: tests/train/test_objectives.py."""
SHIPPED: Final = [
    *(
        each
        for each in sorted(ROOT.glob("configs/experiment/*.yaml"))
        if each.name not in LIKE_OTHERS
    ),
    ROOT / "tests/tiny_run.yaml",
]
CLUSTERS: Final = [
    None,
    *(each for each in sorted(ROOT.glob("configs/cluster/*.yaml")) if each.name not in LIKE_OTHERS),
]
WANTED_STEPS: Final = 2
MOST_RANKS: Final = 2
RUN_SECONDS: Final = 100
WORKER_SECONDS: Final = 900

Path_ = tuple[str, ...]

# Written into the file as they stand.
ODD_TEXTS: Final = (
    *("", "~", "yes", "010", "0x10", "1:30", "1e٣", "1_000", "2001-13-45", ".nan", ".inf", "-.inf"),
    *("[]", "{}", "[1, 2]", "[[1, 2], [3, 4]]", "{a: 1}", "{kind: random}", "{kind: mlp}"),
    *("!!int abc", "!!python/none x", "*a", "<<", "@x", "'", "a: b", "'a #b'", "- 1", "日本語"),
    *(
        '"a\\0b"',
        '"a\\nb"',
        '"\\ud800"',
        "' '",
        "''",
        "../x",
        "~/x",
        "$UNSET/x",
        "s3://b/x",
        "x://y",
    ),
    *(400 * "a", 5000 * "9", "[" * 400 + "]" * 400),
)
NUMBERS: Final = (
    *(-(10**30), -1, 0, 1, 2, 3, 7, 64, 10**4, 2**31, 2**53, 2**63, 2**64, 10**30),
    *(2**12, 2**17, 2**20, 2**24, 2**40, 10**7, 10**9, 10**12, 2**63 - 1),  # bounds
    *(0.75, 0.99, 1e-20, 1e20, 1e3, 1e6, 1e7),
    *(-1.0, 0.0, 1e-300, 1e-30, 1e-6, 0.1, 0.5, 0.999999, 1.0, 1.5, 64.0, 1e9, 1e30, 1e300),
)
WORDS: Final = (
    *("bf16", "fp32", "auto", "fit", "stream", "across", "within", "linear", "cosine", "constant"),
    *("random", "rules", "fixed", "stored", "mlp", "text", "pre", "deepnorm", "selective", "full"),
    *("online", "offline", "first", "longest", "paragraph", "block"),
)
ALTERNATIVES: Final[dict[str, tuple[Any, ...]]] = {
    "spans.text": (
        {"kind": "stored"},
        {"kind": "fixed", "ranges": [[1, 9], [20, 30]]},
        {"kind": "fixed", "ranges": []},
        {"kind": "random", "ratio": 0.7, "min_tokens": 4, "max_tokens": 8},
        {"kind": "random", "ratio_by_tokens": [[8, 0.1], [64, 0.5]]},
        {"kind": "rules", "which": "longest", "min_tokens": 2, "max_tokens": 20},
        {"kind": "rules", "which": "random", "unit": "block", "max_tokens": 3, "min_tokens": 1},
    ),
    "model.encoders.text.connector": ({"kind": "mlp"}, {"kind": "mlp", "num_layers": 5}),
    "data.sources": (
        {"a": {"corpus": "x"}, "b c": {"corpus": "y", "weight": 3}},
        {"a": {"corpus": "x", "epochs": 0.5}, "b": {"corpus": "y"}},
        {
            "a": {"corpus": "x", "tokens": 1},
            "b": {"corpus": "y", "weight_by_step": [[1, 1], [9, 0]]},
        },
        {"a": {"corpus": "x", "weight": 0}},
        {"a": {"corpus": "x", "epochs": 1e9}},
    ),
    "samples.prompts": (["the [[page of memory]] bus"], [""], ["[["], ["]] \\[["], ["日本語"]),
    "layout": ({"tensor": 2}, {"pipeline": 2}, {"pipeline": 2, "chunks": 1}, {"recompute": "full"}),
    "lora": ({"rank": 2}, {"rank": 32, "targets": ["up"]}, {"rank": 1, "targets": ["nope"]}),
    "zero": (
        {"stage": 3, "offload_directory": "x"},
        *({"stage": stage, "bucket_elements": 2} for stage in range(4)),
    ),
    "data.attend": ("within",),
    "data.pack": ("fit", "stream"),
    "precision": ("bf16", "fp32", "auto"),
    "init_from": ("x",),
    "model.encoders": ({},),
}
"""Whole values that may well do."""

TINY: Final[dict[str, Any]] = {
    "model.decoder.vocabulary": 300,
    "model.decoder.width": 32,
    "model.decoder.num_layers": 2,
    "model.decoder.heads": 4,
    "model.decoder.feed_forward": 64,
    "model.decoder.max_tokens": 64,
    "model.encoders.text.encoder.width": 16,
    "model.encoders.text.encoder.num_layers": 2,
    "model.encoders.text.encoder.heads": 2,
    "model.encoders.text.encoder.feed_forward": 32,
    "model.encoders.text.encoder.max_tokens": 66,
    "data.sequence_tokens": 64,
    "data.span_capacity.text.tokens": 40,
    "batch.sequences": 2,
    "batch.micro_sequences": 2,
    "steps": 6,
    "optim.warmup_steps": 2,
    "validation.sequences": 2,
    "samples.max_new_tokens": 2,
}
"""Sizes, and how large they may stay."""


@dataclass
class Case:
    """One changed configuration.

    Attributes:
        seed: draws everything.
        base: the shipped configuration.
        changes: what was done to it, in words.
        text: the file that holds it.
        changed: keys whose values were changed.
    """

    seed: int
    base: str = ""
    changes: list[str] = field(default_factory=list)
    text: str = ""
    changed: list[str] = field(default_factory=list)


def case_of(seed: int) -> Case:
    """The configuration of a seed."""
    draw = random.Random(seed)
    case = Case(seed)
    files = Files()
    base, cluster = draw.choice(SHIPPED), draw.choice(CLUSTERS)
    tree = copy.deepcopy(files.read(base))
    case.base = base.name
    if cluster is not None:
        tree = merge(tree, copy.deepcopy(files.read(cluster)))
        case.base += f" {cluster.name}"
    whole = RunConfig.model_validate(tree).model_dump(mode="json")
    raw: dict[str, str] = {}
    for _ in range(draw.choice((1, 1, 2))):
        _change(draw, tree, whole, case, raw)
    case.text = dump(tree)
    for mark, text in raw.items():
        case.text = case.text.replace(mark, text)
    return case


def _paths(tree: Any, above: Path_ = ()) -> Iterator[Path_]:
    for key, value in tree.items():
        yield (*above, key)
        if isinstance(value, dict):
            yield from _paths(value, (*above, key))


def _change(
    draw: random.Random,
    tree: dict[str, Any],
    whole: dict[str, Any],
    case: Case,
    raw: dict[str, str],
) -> None:
    keys = [tuple(key.split(".")) for key in ALTERNATIVES]
    path = draw.choice(keys if draw.random() < 0.15 else list(_paths(whole)))
    key, old = ".".join(path), _get(whole, path)
    is_number = isinstance(old, int | float) and not isinstance(old, bool)
    ways = ["mild", "mild", "mild", "mild", "number", "word", "odd", "delete", "rename", "twice"]
    way = draw.choice(ways)
    new: Any
    if way == "mild":
        new = draw.choice(ALTERNATIVES[key]) if key in ALTERNATIVES else _mild(draw, old)
        if key == "data.sources":
            tree["data"]["corpus"] = None
    elif way == "number" or (way == "word" and is_number):
        new = draw.choice(NUMBERS)
    elif way == "word":
        new = draw.choice(WORDS)
    elif way == "odd":
        new = f"RAW{len(raw)}WAR"
        raw[new] = draw.choice(ODD_TEXTS)
    elif way == "twice":
        new = old if isinstance(old, dict | list) else f"RAW{len(raw)}WAR"
        if not isinstance(old, dict | list):
            raw[new] = f"{old}\n{path[0]}: 1" if draw.random() < 0.2 else f"{old} # {old}"
    else:
        _remove(tree, path)
        if way == "rename":
            odd = draw.choice(
                (key[::-1], path[-1] + "s", path[-1].upper(), "ключ", "a b", "", "<<")
            )
            _set(tree, (*path[:-1], odd), old)
            way = f"rename to {odd!r}"
        case.changes.append(f"{way} {key}")
        return
    _set(tree, path, new)
    case.changed.append(key)
    case.changes.append(f"{key}: {raw.get(new, new) if isinstance(new, str) else new!r:.60}")


def _mild(draw: random.Random, old: Any) -> Any:
    """A value that may well do in place of another."""
    if isinstance(old, bool):
        return not old
    if isinstance(old, int):
        return draw.choice((old * 2, max(1, old // 2), old + 1, old - 1, 1, 2))
    if isinstance(old, float):
        return draw.choice((old / 2, min(old * 2, 0.9 if old < 1 else 1e9), 0.25, 0.0, 1))
    if isinstance(old, str):
        return draw.choice((*WORDS, old, old, old + "é"))
    if old is None:
        return draw.choice((None, 1, 2, 0.5, True, "x", [1, 1], {"rank": 2}))
    return copy.deepcopy(old)


def _get(tree: Any, path: Path_) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def _set(tree: dict[str, Any], path: Path_, value: Any) -> None:
    for key in path[:-1]:
        if not isinstance(tree.get(key), dict):
            tree[key] = {}
        tree = tree[key]
    tree[path[-1]] = value


def _remove(tree: dict[str, Any], path: Path_) -> None:
    for key in path[:-1]:
        tree = tree.get(key, {})
        if not isinstance(tree, dict):
            return
    tree.pop(path[-1], None)


def asked(arguments: list[str]) -> tuple[int, str]:
    """`python -m train` in this process: its status, and what it said.

    Raises:
        Exception: what no user may see.
    """
    told = io.StringIO()
    before, sys.argv = sys.argv, ["train", *arguments]
    try:
        with contextlib.redirect_stderr(told), contextlib.redirect_stdout(io.StringIO()):
            return command.main(), told.getvalue()
    finally:
        sys.argv = before


def tiny(case: Case, config: RunConfig, place: Path) -> list[str]:
    """Overrides that make a sound case small, and leave what was changed as far as it is small."""
    tree = config.model_dump(mode="json")
    overrides = [f"run_directory={place}/run-{case.seed}", "watch.wandb=disabled"]
    for key, most in TINY.items():
        try:
            value = _get(tree, tuple(key.split(".")))
        except (KeyError, TypeError):
            continue
        if not (key in case.changed and value <= 2 * most):
            overrides.append(f"{key}={most}")
    spans = "spans" if "stored" in case.text or "data.span_capacity" in case.text else "plain"
    corpus = place / spans
    if config.data.corpus is not None:
        overrides.append(f"data.corpus={corpus}")
    overrides += [f"data.sources.{name}.corpus={corpus}" for name in config.data.sources]
    if config.init_from is not None:
        overrides.append(f"init_from={place}/first")
    for key in ("checkpoint.directory", "storage.cache", "zero.offload_directory"):
        if _get(tree, tuple(key.split("."))) is not None:
            overrides.append(f"{key}={place}/{key}-{case.seed}")
    return overrides


def try_case(case: Case, place: Path) -> dict[str, Any]:
    """What becomes of a case: `fault` is what must not be, `steps` how many it took."""
    found: dict[str, Any] = {"seed": case.seed, "steps": 0, "fault": "", "told": ""}
    file = place / f"{case.seed}.yaml"
    file.write_text(case.text)
    try:
        code, told = asked([str(file), "--print"])
        found["told"] = told
        if code == 0:
            config = command.load(RunConfig, [str(file)])
            ranks = config.layout.model_ranks
            arguments = [str(file), *tiny(case, config, place)]
            if ranks <= MOST_RANKS and asked([*arguments, "--print"])[0] == 0:
                found |= _two_steps(arguments, place / f"{case.seed}.json", ranks=ranks)
                code, told = found["code"], found["told"]
        if code not in (0, 75):
            found["fault"] = _silent(told, code)
    except Exception:
        found["fault"] = traceback.format_exc()
    return found


KEY: Final = re.compile(
    rf"\.yaml: line|\b({'|'.join(name for path, _ in _keys(RunConfig) for name in path)})\b"
)


def _silent(told: str, code: int) -> str:
    """What is wrong with how a refusal is told."""
    lines = told.splitlines()
    is_told = lines and max(map(len, lines)) < 700 and KEY.search(told) is not None
    if code != 2 or not is_told or re.search(r"Traceback|Error\b|Exception\b", told):
        return f"ended with {code} and said {told[-1500:]}"
    return ""


def _two_steps(arguments: list[str], output: Path, *, ranks: int) -> dict[str, Any]:
    """Trains in processes of their own, since what DeepSpeed keeps does for one engine only."""
    gc.freeze()  # the first collection of all that was imported takes as long as a run
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    children: dict[int, Path] = {}
    for rank in range(ranks):
        file = output.with_suffix(f".{rank}")
        if child := os.fork():
            children[child] = file
            continue
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        faulthandler.dump_traceback_later(RUN_SECONDS, exit=True, file=file.open("w"))
        try:
            found = _train(arguments)
        except BaseException:
            found = {"code": -1, "told": traceback.format_exc(), "steps": 0}
        file.write_text(json.dumps(found))
        os._exit(0)
    worst: dict[str, Any] = {"code": 0}
    for child, file in children.items():
        _, status = os.waitpid(child, 0)
        text = file.read_text() if file.exists() else ""
        file.unlink(missing_ok=True)
        died = {"code": -1, "told": f"died of {status}: {text}", "steps": 0}
        found = died if status else json.loads(text)
        worst = max(worst, found, key=lambda each: abs(each["code"] % 75))
        worst = found if worst["code"] == 0 else worst
    return worst


def _train(arguments: list[str]) -> dict[str, Any]:
    """Until a signal asks to stop, heard in the second step."""
    gc.disable()
    taken = 0
    original = loop.update

    def counted(*given: Any, **options: Any) -> Any:
        nonlocal taken
        result = original(*given, **options)
        taken += 1
        if taken == WANTED_STEPS - 1:  # heard in the next one, the last
            os.kill(os.getpid(), signal.SIGUSR1)
        return result

    def leave(code: int) -> None:
        raise SystemExit(code)

    told = io.StringIO()
    loop.update, command.abandon = counted, leave
    sys.argv = ["train", *arguments]
    try:
        with contextlib.redirect_stderr(told), contextlib.redirect_stdout(told):
            code = command.main()
    except SystemExit as ended:
        code = int(ended.code or 0)
    return {"steps": taken, "told": told.getvalue(), "code": code}


def work(seeds: list[int], place: Path, output: Path) -> None:
    """A worker's cases, one record a line."""
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    with output.open("w") as file:
        for seed in seeds:
            file.write(f'{{"began": {seed}}}\n')
            file.flush()
            file.write(json.dumps(try_case(case_of(seed), place)) + "\n")
            file.flush()
    os._exit(0)


def tried(seeds: list[int], place: Path, *, each: int = 25) -> list[dict[str, Any]]:
    """All cases, in processes of some cases each, one after the other."""
    found: list[dict[str, Any]] = []
    for first in range(0, len(seeds), each):
        some, output = seeds[first : first + each], place / f"found-{first}.jsonl"
        process = warm.context().Process(target=work, args=(some, place, output), daemon=True)
        process.start()
        process.join(WORKER_SECONDS)
        records = [json.loads(line) for line in output.read_text().splitlines()]
        if process.exitcode != 0:
            process.kill()
            last = records.pop()
            state = "hangs" if process.exitcode is None else f"died of {process.exitcode}"
            records.append({"seed": last.get("began"), "steps": 0, "fault": state, "told": ""})
        found += [record for record in records if "seed" in record]
    return found
