"""Reading pictures: how long training waits for them, and beside torchvision's reader."""

import base64
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from model import torchvision_free
from model.encoders.image import ImageEncoderConfig
from parallel.launch import World
from parallel.mesh import build_mesh
from tools.bench.media.pictures import drawing
from tools.bench.rounds import Findings, contestants, spread
from tools.bench.shapes import Plan
from tools.corpus.build import build
from tools.corpus.request import Request
from tools.corpus.tokenizer import SMALLEST_VOCABULARY
from tools.random_batches import SEED
from train.build import build_collator, build_engine, build_feed, build_model, build_plan
from train.config import RunConfig
from train.config_files import load
from train.data.spans.picture import read_picture
from train.step import train_step

NAMING: Final = "configs/experiment/naming.yaml"
SIDES: Final = (64, 160)
"""Least and most pixels of a side, as of emoji."""
WORDS: Final = [
    "red",
    "green",
    "blue",
    "small",
    "large",
    "round",
    "flat",
    "old",
    "new",
    "dark",
    "bright",
    "cold",
    "warm",
]
WARMUP_STEPS: Final = 2

FILES: Final = {"PNG": (320, 240), "JPEG": (640, 480)}
"""Width and height of what both readers read, half of them each."""
SEEN: Final = ImageEncoderConfig.model_validate(
    {
        "kind": "image",
        "width": 64,
        "num_layers": 1,
        "heads": 1,
        "feed_forward": 64,
        "patch_pixels": 16,
        "size": [224, 224],
    }
)


def waiting(plan: Plan) -> Findings:
    """What share of a step waits for pictures, as `make naming` trains: read, changed, packed."""
    with tempfile.TemporaryDirectory(prefix="semicausal-bench-") as name:
        root = _corpus(Path(name), count=plan.reading_pictures)
        steps = WARMUP_STEPS + plan.heavy.rounds * plan.heavy.steps
        config = load(
            RunConfig,
            [
                *(NAMING, f"data.corpus={root}", f"run_directory={root}/run", f"steps={steps}"),
                *("precision=fp32", "optim.warmup_steps=1"),
                f"model.decoder.vocabulary={SMALLEST_VOCABULARY}",
            ],
        )
        data = build_plan(config)
        collate = build_collator(config, data.sources.special)
        mesh = build_mesh(config.layout, World.here())
        engine = build_engine(config, build_model(config, mesh), mesh)
        engine.set_learning_rate(config.optim.lr)
        fractions: list[float] = []
        seconds: list[float] = []
        pictures = 0
        with build_feed(config, data, collate, mesh) as feed:
            for step in range(1, steps + 1):
                started = time.perf_counter()
                batches = feed.step(step).batches
                train_step(engine, batches)
                taken = time.perf_counter() - started
                if step > WARMUP_STEPS:
                    fractions.append(feed.wait_seconds / taken)
                    seconds.append(taken)
                    pictures += sum(_count(batch.spans["image"]) for batch in batches)
    return Findings(
        settings={
            "config": NAMING,
            "step_seconds": spread(seconds).median,
            "pictures_of_a_step": pictures / len(seconds),
        },
        # Of all steps together: one that waits is not made up for by others.
        ratios={
            "media_wait_fraction": spread(
                [sum(f * s for f, s in zip(fractions, seconds, strict=True)) / sum(seconds)]
            )
        },
    )


def _count(spans: Any) -> int:
    return spans.num_spans


def _corpus(root: Path, *, count: int) -> Path:
    random = np.random.default_rng(SEED)
    rows = root / "rows.jsonl"
    with rows.open("w") as file:
        for _ in range(count):
            height, width = random.integers(*SIDES, 2).tolist()
            data = base64.b64encode(drawing(random, height, width)).decode()
            text = f" {' '.join(random.choice(WORDS, 3))}"
            file.write(json.dumps({"image": {"bytes": data}, "text": text}) + "\n")
    built = root / "corpus"
    request = Request(
        sources=[str(rows)], vocabulary=SMALLEST_VOCABULARY, validation=0.1, has_media=True
    )
    build(str(built), request, console=Console(quiet=True))
    return built


def beside_torchvision(plan: Plan) -> Findings:
    """Pictures a second, from a file to pixels of one size, ours over torchvision's reader."""
    random = np.random.default_rng(SEED)
    with tempfile.TemporaryDirectory(prefix="semicausal-bench-") as name:
        paths: list[Path] = []
        for number in range(plan.reading_files):
            kind = list(FILES)[number % 2]
            width, height = FILES[kind]
            path = Path(name) / f"{number}.{kind.lower()}"
            path.write_bytes(drawing(random, height, width, kind=kind))
            paths.append(path)
        reader, called = torchvision_reader()
        found = Findings(settings={"files": len(paths), "reader": called, "size": SEEN.size})
        found.compare(
            contestants(
                {
                    "ours": lambda: [_ours(path) for path in paths],
                    "torchvision": lambda: [reader(path) for path in paths],
                },
                tokens=len(paths),
            ),
            plan.heavy,
            {"decode_vs_reader": ("torchvision", "ours")},
        )
    return found


def _ours(path: Path) -> NDArray[np.uint8]:
    return read_picture(path.read_bytes(), SEEN).patches


def torchvision_reader() -> tuple[Callable[[Path], Any], str]:
    """What reads a file at the size, and what it is called.

    It is `decode_image` where torchvision's library loads, which is built for one build of torch;
    else `default_loader`, which `ImageFolder` reads with unless it is told otherwise.
    """
    torchvision_free.install()
    from torchvision.datasets.folder import default_loader
    from torchvision.io import ImageReadMode, decode_image, read_file
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as F

    size: Sequence[int] = SEEN.size or ()

    def fitted(image: Any) -> Any:
        return F.resize(image, list(size), InterpolationMode.BICUBIC, antialias=True)

    def compiled(path: Path) -> Any:
        return fitted(decode_image(read_file(str(path)), ImageReadMode.RGB))

    def plain(path: Path) -> Any:
        return F.pil_to_tensor(fitted(default_loader(str(path))))

    with tempfile.TemporaryDirectory(prefix="semicausal-bench-") as name:
        path = Path(name) / "one.png"
        path.write_bytes(drawing(np.random.default_rng(SEED), 8, 8))
        try:
            compiled(path)
        except (RuntimeError, AttributeError):
            return plain, "torchvision.datasets.folder.default_loader"
    return compiled, "torchvision.io.decode_image"
