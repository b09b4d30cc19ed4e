"""The model card of an exported folder: what the model is, what it read, how well it did."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model.semicausal import ModelConfig, parameter_counts
from train.asked import text_encoder
from train.config import RunConfig
from train.data.store.manifest import (
    MANIFEST_BYTES_AT_MOST,
    MANIFEST_NAME,
    Manifest,
    parse_manifest,
)
from train.errors import UserError
from train.loading import drawn_of
from train.run_directory import RunDirectory
from train.storage.place import Place
from train.watch.metrics import perplexity, read_metrics

_USE = """```python
{imports}from transformers import AutoModelForCausalLM, AutoProcessor

model = AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(FOLDER, trust_remote_code=True)
inputs = processor({prompt})
new = model.generate(**inputs, max_new_tokens=32)
print(processor.batch_decode(new))
```"""

_NATIVE_USE = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(FOLDER)
tokenizer = AutoTokenizer.from_pretrained(FOLDER)
new = model.generate(**tokenizer({prompt}, return_tensors="pt"), max_new_tokens=32)
print(tokenizer.batch_decode(new))
```"""

_SPANS = "A part of a prompt between `[[` and `]]` is read by the bidirectional encoder. "
_PICTURES = (
    "Each `[[image:...]]` of a prompt is a picture, whatever stands there: `images` gives them in "
    "order."
)
_PICTURE_PROMPT = '"[[image:cat.png]] shows", images=[Image.open("cat.png")]'


def model_card(
    config: RunConfig, state: Mapping[str, Any], *, checkpoint: Place, native: bool = False
) -> str:
    """The page as Markdown, with the head that model hubs read.

    Args:
        config: of the run.
        state: of the checkpoint.
        checkpoint: whose run's metrics are told, where they lie beside it.
        native: whether the folder is of a class of transformers itself.
    """
    model = config.built_model
    reads_text, reads_pictures = text_encoder(model) is not None, "image" in model.encoders
    prompt = "the driver [[maps a page]] of memory" if reads_text else "the driver maps a page"
    sections = [
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\n"
        "tags:\n- semicausal\n- metalm\n---",
        f"# {config.name}",
        _described(model),
        *_untrained(checkpoint),
        "## Use\n\n"
        + ("" if native else "Its code comes with it: `trust_remote_code=True`. ")
        + (_SPANS if reads_text else "")
        + (_PICTURES if reads_pictures else "")
        + "\n\n"
        + (_NATIVE_USE if native else _USE).format(
            imports="from PIL import Image\n" if reads_pictures else "",
            prompt=_PICTURE_PROMPT if reads_pictures else repr(prompt),
        ),
        f"## Training\n\n{state['step']:,} of {config.steps:,} steps of "
        f"{config.batch.sequences:,} sequences of {config.data.sequence_tokens:,} tokens, "
        f"learning rate {config.optim.lr:g}, seed {config.seed}.",
        "## What it read, and its licences\n\n" + _corpora(config),
        "## Metrics\n\n" + _metrics(checkpoint, step=state["step"]),
        "## Limits\n\nIt continues text and is tuned neither to follow instructions nor to refuse "
        "them, unless what it read says so. It repeats what its corpus says, errors and prejudices "
        "included. Whoever publishes it chooses its licence, within those above.",
    ]
    return "\n\n".join(sections) + "\n"


def _described(model: ModelConfig) -> str:
    counts = parameter_counts(model)
    decoder = model.decoder
    parts = ", ".join(f"{name} {count:,}" for name, count in counts.items())
    kind = (
        "A semi-causal language model (MetaLM): a causal decoder that reads tokens, and vectors "
        "that a bidirectional encoder makes of marked spans."
        if model.encoders
        else "A causal language model."
    )
    return (
        f"{kind} {sum(counts.values()):,} parameters ({parts}); decoder {decoder.num_layers} "
        f"layers of width {decoder.width}, {decoder.heads} heads, {decoder.max_tokens:,} "
        f"positions, {decoder.vocabulary:,} tokens."
    )


def _untrained(checkpoint: Place) -> list[str]:
    drawn = drawn_of(checkpoint)
    if drawn is None:
        return []
    return [f"**Not trained**: {drawn}; this is a base for adapters that train them whole."]


def _corpora(config: RunConfig) -> str:
    rows = ["| corpus | source | documents | tokens | licences |", "|---|---|---:|---:|---|"]
    for name, source in config.data.mixed.items():
        manifest = _manifest(Place.parse(source.corpus, config.storage))
        if manifest is None or not manifest.sources:
            rows.append(f"| {name} | not stated | | | not stated |")
            continue
        rows += [
            f"| {name} | {part.name} | {part.documents:,} | {part.tokens:,} | "
            f"{', '.join(part.licences) or 'not stated'} |"
            for part in manifest.sources
        ]
    return "\n".join(rows)


def _manifest(corpus: Place) -> Manifest | None:
    try:
        content = (corpus / MANIFEST_NAME).read(limit_bytes=MANIFEST_BYTES_AT_MOST)
        return parse_manifest(content, place=str(corpus))
    except (OSError, UserError):  # it may be of another host
        return None


def _metrics(checkpoint: Place, *, step: int) -> str:
    run = checkpoint.parent.parent
    try:
        if run.is_remote:
            return "None lie beside the checkpoint."
        records = read_metrics(RunDirectory(Path(run)).metrics).validation
    except UserError:
        return "None lie beside the checkpoint."
    records = [record for record in records if record.step <= step]
    if not records or not math.isfinite(records[-1].loss):
        return "It was not validated."
    last = records[-1]
    return (
        f"Validation after {last.step:,} steps: loss {last.loss:.4f} nats a scored token "
        f"(perplexity {perplexity(last.loss):.2f}) over {last.scored_tokens:,} tokens."
    )
