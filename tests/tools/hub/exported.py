"""An export judged by plain transformers, against what our own model says."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.adapters.several import put_adapter, rows_use
from model.semicausal import SemiCausal
from tests.corpora import write_tokenizer
from tests.model.examples import tiny_model
from tools.hub.folder import read_folder, write_folder
from train.adapter import read as read_adapter
from train.asked import Asked, Prompt, pack, text_encoder
from train.checkpoint.directory import resolve
from train.checkpoint.restore import read_state
from train.checkpoint.weights import read_values, write_values
from train.config import RunConfig
from train.config_files import load
from train.data.document import Kind
from train.data.segments import MediaSegment
from train.items import Bounds, item_of
from train.loading import load_model
from train.run_directory import kept_tokenizer
from train.storage.place import Place
from train.text import Speaker

CPU = torch.device("cpu")
TINY_RUN = Path(__file__).parents[2] / "tiny_run.yaml"
JUDGE = Path(__file__).parent / "judge.py"
NEW_TOKENS = 12
LOGITS_WITHIN = 1e-4
PLAIN = ("the kernel maps a page", "memory", "a driver asks the bus for")
WITH_SPANS = (
    "the kernel [[maps a page]] of memory when [[the driver]]",
    "[[asks the bus]] for its device",
    "no span \\[[here",
    "the page [[of]][[ memory when the kernel asks]] and",
)
WITH_PICTURES = (
    "[[image:noise.png]] shows the kernel",
    "the page [[image:wide.jpg]] and[[image:noise.png]][[image:clear.webp]]\nof memory\n\nmaps",
    "a driver\n[[image:clear.webp]]",
    "no picture [[maps a page]] of memory when [[image:noise.png]] asks [[the bus]] \\[[image:",
)
SHOWN = re.compile(r"(?<!\\)\[\[image:(.*?)\]\]")


def draw(directory: Path) -> Path:
    """Pictures of some kinds and sizes, by the names that prompts have for them."""
    directory.mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 256, (23, 37, 4), np.uint8)
    Image.fromarray(noise[..., :3]).save(directory / "noise.png")
    Image.fromarray(noise[:5, :, :3]).save(directory / "wide.jpg")
    Image.fromarray(noise).save(directory / "clear.webp", lossless=True)
    return directory


@dataclass(frozen=True, kw_only=True)
class Row:
    """What came of one export, as it stands in out/export.json.

    Attributes:
        model: which.
        transformers: version that judged.
        logit_difference: largest to ours, alone, in a padded batch, saved and loaded again, with
            an adapter that peft has made, and with it merged.
        tokens_equal: whether `generate` gave our tokens, alone, padded and with a static cache.
        round_trip_equal: whether the way back gave the same checkpoint bit for bit, also behind
            transformers' own save.
        hidden_difference: largest of hidden states to those of the class it was imported from.
    """

    model: str
    transformers: str
    logit_difference: float | None = None
    tokens_equal: bool | None = None
    round_trip_equal: bool | None = None
    hidden_difference: float | None = None


def write_checkpoint(root: Path, *overrides: str) -> Path:
    """A run's checkpoint of a tiny model whose weights are nowhere trivial, and its tokenizer."""
    sha = write_tokenizer(root_made(root) / "tokenizer.json")
    config = load(
        RunConfig, [str(TINY_RUN), "data.corpus=none", f"run_directory={root}", *overrides]
    )
    model = tiny_model(config.built_model)
    state = {"step": 3, "config": config.model_dump(mode="json"), "tokenizer_sha256": sha}
    path = write_values(root / "checkpoints/step_00000003", dict(model.named_parameters()), state)
    return Path(path)


def root_made(root: Path) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    return root


def judged(
    folder: Path,
    resaved: Path,
    prompts: Sequence[str],
    *,
    python: str,
    peft: bool,
    pictures: Path,
) -> tuple[str, dict[str, Tensor]]:
    """The version of transformers, and what the judge found."""
    request, answer = resaved.with_suffix(".request"), resaved.with_suffix(".answer")
    broken = resaved.with_name("broken")
    shutil.copytree(folder, broken)
    values = load_file(folder / "model.safetensors")
    values["extra"] = values.pop("decoder.blocks.0.attention.out.weight")
    save_file(values, broken / "model.safetensors", metadata={"format": "pt"})
    asked = {
        "folder": str(folder),
        "broken": str(broken),
        "resaved": str(resaved),
        "prompts": list(prompts),
        "images": [[str(pictures / name) for name in SHOWN.findall(p)] for p in prompts],
        "max_new_tokens": NEW_TOKENS,
        "peft": peft,
    }
    request.write_text(json.dumps(asked))
    done = subprocess.run(
        [python, "-I", str(JUDGE), str(request), str(answer)],
        cwd=resaved.parent,
        env={"HF_HUB_OFFLINE": "1", "HF_HOME": str(resaved.parent / "hub"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    with safe_open(answer, framework="pt") as opened:
        assert "lacks decoder.blocks.0.attention.out.weight" in opened.metadata()["refused"]
        assert "left over extra" in opened.metadata()["refused"]
        found = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
        return opened.metadata()["transformers"], found


def logits_of(model: SemiCausal, prompt: Prompt) -> Tensor:
    """Ours, [S, V]."""
    spans = pack(model.config, [prompt], device=CPU)
    states = model.decoder(model.inputs(torch.tensor([prompt.tokens]), spans))
    return model.decoder.head.logits(states)[0]


@torch.no_grad()
def compare(
    name: str, checkpoint: Path, work: Path, *, python: str = sys.executable, peft: bool = True
) -> Row:
    """Export, let plain transformers judge, and come back.

    Args:
        name: of the row.
        checkpoint: of ours.
        work: directory for what is written on the way.
        python: of the environment that judges.
        peft: whether adapters are merged there too.
    """
    folder = write_folder(checkpoint, root_made(work) / "folder")
    model = load_model(checkpoint, device=CPU)
    has_encoder = text_encoder(model.config) is not None
    prompts = [*PLAIN, *(WITH_SPANS if has_encoder else ())]
    if "image" in model.config.encoders:
        prompts += [p for p in WITH_PICTURES if has_encoder or "[[maps" not in p]
    pictures = draw(work / "pictures")

    def shown(kind: Kind, name: str) -> MediaSegment:
        content = (pictures / name).read_bytes()
        return item_of(kind, content, name=name, bounds=Bounds())

    version, found = judged(
        folder, work / "resaved", prompts, python=python, peft=peft, pictures=pictures
    )
    speaker = Speaker(model, folder / "tokenizer.json")
    stop = speaker.special.document
    differences: list[float] = []
    unequal: list[str] = []
    width = found["batch.ids"].shape[1]
    read = [speaker.prompt(prompt, items=shown) for prompt in prompts]
    answers = speaker.complete([Asked(prompt=p, max_new_tokens=NEW_TOKENS) for p in read])
    for number, (prompt, asked) in enumerate(zip(prompts, read, strict=True)):
        assert found[f"ids.{number}"][0].tolist() == asked.tokens
        logits = logits_of(model, asked)
        padded = found["batch.logits"][number][width - len(asked.tokens) :]
        again = found["again.logits"][number][width - len(asked.tokens) :]
        for other in (found[f"logits.{number}"][0], padded, again):
            differences.append(float((logits - other).abs().max()))
        new = [token.id for token in answers[number].tokens]
        for key in (f"tokens.{number}", "batch.tokens", "static.tokens"):
            rows = found[key]
            theirs = rows[number if len(rows) > 1 else 0].tolist()
            theirs = theirs[: theirs.index(stop)] if stop in theirs else theirs
            if new != theirs:
                unequal.append(f"{key} of {prompt!r}: {theirs}, ours {new}")
    uncached, new = found["uncached"][0].tolist(), [token.id for token in answers[-1].tokens]
    if uncached[: len(new)] != new[: len(uncached)]:
        unequal.append(f"uncached {prompts[-1]!r}: {uncached}, ours {new}")
    if peft:
        assert (found["tuned.logits"] - found["batch.logits"]).abs().max() > 1e-3
        differences.append(float((found["tuned.logits"] - found["merged.logits"]).abs().max()))
        # What peft has made on the export is an adapter of our model too.
        adapter = read_adapter(work / "resaved-adapter")
        assert adapter.config is not None
        put_adapter(model, "theirs", adapter.config, adapter.values)
        for number, prompt in enumerate(read):
            S = len(prompt.tokens)
            with rows_use(model, ["theirs"], slots=S):
                tuned = logits_of(model, prompt)
            difference = tuned - found["tuned.logits"][number][width - S :]
            differences.append(float(difference.abs().max()))
    for told in unequal:
        sys.stderr.write(f"{name}: {told}\n")
    return Row(
        model=name,
        transformers=version,
        logit_difference=max(differences),
        tokens_equal=not unequal,
        round_trip_equal=all(
            came_back(checkpoint, source, work / f"back-{source.name}")
            for source in (folder, work / "resaved")
        ),
    )


def came_back(checkpoint: Path, folder: Path, out: Path) -> bool:
    """Whether the way back gives the checkpoint's weights and state, bit for bit."""
    back = read_folder(folder, out)
    before, after = read_values(checkpoint), read_values(back)
    path = resolve(checkpoint)
    state = read_state(path).model_dump()
    kept = kept_tokenizer(path, state)
    assert kept is not None
    tokenizers = [
        sha256(file.read_bytes()).hexdigest() for file in (out / "tokenizer.json", Path(kept))
    ]
    return (
        state == read_state(Place.of(out)).model_dump()
        and list(before) == list(after)
        and all(
            before[name].dtype == after[name].dtype and bits(before[name]).equal(bits(after[name]))
            for name in before
        )
        and (folder.name != "folder" or len(set(tokenizers)) == 1)
    )


def bits(value: Tensor) -> Tensor:
    return value.contiguous().view(torch.uint8)
