"""Our model as transformers runs it: written as a checkpoint, exported, loaded from the folder."""

import os
import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from model import torchvision_free
from model.batch import UNSCORED, Batch
from model.encoders.text import TextSpans
from model.semicausal import SemiCausal
from tools.corpus.tokenizer import CorpusTokenizer
from tools.hub.folder import write_folder
from train.checkpoint.weights import write_values
from train.config import RunConfig
from train.config_files import load
from train.data.tokens import SpecialTokens
from train.storage.place import Place

RUN = "configs/experiment/first_light.yaml"
"""Whose settings a checkpoint has besides its model."""
WORDS = 400
TOKENS = 300


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A model in both forms, and a tokenizer of made-up words (`word`) with them.

    Attributes:
        checkpoint: as training has it.
        folder: as transformers has it.
    """

    checkpoint: Place
    folder: Path

    def peer(self) -> Any:
        """The folder's own class, with the weights of ours."""
        torchvision_free.install()
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(str(self.folder), trust_remote_code=True)


@contextmanager
def exported(model: SemiCausal, *, sequence_tokens: int) -> Generator[Exported]:
    """Within the context, a model lies on disk in both forms. Call it before transformers is used.

    Args:
        model: whole, with an encoder of spans.
        sequence_tokens: S of the run that it is said to come from.
    """
    with tempfile.TemporaryDirectory(prefix="semicausal-bench-") as name:
        root = Path(name)
        os.environ |= {"HF_HOME": str(root / "hub"), "HF_HUB_OFFLINE": "1"}
        tokenizer = CorpusTokenizer.train((word(n) for n in range(WORDS)), vocabulary=TOKENS)
        (root / "tokenizer.json").write_bytes(tokenizer.content)
        config = load(RunConfig, [RUN, f"data.sequence_tokens={sequence_tokens}"])
        config = config.model_copy(update={"model": model.config, "run_directory": str(root)})
        state: Mapping[str, Any] = {
            "step": 1,
            "config": config.model_dump(mode="json"),
            "tokenizer_sha256": sha256(tokenizer.content).hexdigest(),
        }
        values = dict(model.named_parameters())
        checkpoint = write_values(root / "checkpoints/step_00000001", values, state)
        yield Exported(checkpoint=checkpoint, folder=write_folder(checkpoint, root / "exported"))


def word(number: int) -> str:
    """A word of up to three syllables, the same for the same number."""
    syllables = [c + v for c in "bdfgklmnprstvz" for v in "aeiou"]
    return "".join(syllables[number // 7**i % len(syllables)] for i in range(1 + number % 3))


def peer_loss(model: Any, batch: Batch) -> Tensor:
    """The peer's own loss of a batch whose slots say all: padding, spans and labels."""
    return model(
        input_ids=batch.tokens,
        attention_mask=(batch.tokens != SpecialTokens().padding).long(),
        labels=F.pad(batch.labels[:, :-1], (1, 0), value=UNSCORED),  # it shifts them itself
        spans=span_numbers(batch),
        use_cache=False,
    ).loss


def span_numbers(batch: Batch) -> Tensor:
    """[B, S] number of the span of each slot, from 1 in each row; 0 outside."""
    (spans,) = batch.spans.values()
    assert isinstance(spans, TextSpans)
    rows = spans.vectors[: spans.num_vectors]
    numbers = torch.zeros(batch.tokens.numel() + 1, dtype=torch.long)
    numbers[spans.slots[: spans.num_vectors]] = (spans.positions[rows] == 1).long().cumsum(0)
    numbers = numbers[:-1].view(batch.tokens.shape)
    before = numbers.masked_fill(numbers == 0, numbers.numel()).amin(dim=1, keepdim=True) - 1
    return (numbers - before).clamp(min=0)
