"""From a checkpoint to what asks it."""

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from tokenizers import Tokenizer

from model.semicausal import SemiCausal
from parallel.agreement import on_first_rank
from parallel.forward import Engine
from parallel.reading import reader
from train.checkpoint.directory import resolve
from train.checkpoint.format import INDEX_BYTES_AT_MOST, INDEX_NAME
from train.checkpoint.restore import read_state
from train.data.tokens import TOKENIZER_BYTES_AT_MOST, read_tokenizer
from train.errors import CheckpointError, UserError
from train.run_directory import kept_tokenizer
from train.scores.answers import Answers
from train.scores.asking import Asking
from train.scores.scorer import Scorer
from train.storage.place import Place
from train.storage.record import content_of


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A model that can be asked.

    Attributes:
        scorer: asks it.
        asking: makes requests of examples.
        tokenizer: that it was trained with.
    """

    scorer: Scorer
    asking: Asking
    tokenizer: Tokenizer

    def decode(self, tokens: list[int]) -> str:
        """Text of generated tokens."""
        return self.tokenizer.decode(tokens)


def open_model(path: Place | Path, engine: Engine, *, answers: Path | None, batch: int) -> Opened:
    """The model of a checkpoint; every rank must call it.

    Args:
        path: a run or one of its checkpoints.
        engine: with its weights.
        answers: file that keeps answers; None for none.
        batch: contexts that a rank reads at once.

    Raises:
        UserError: its tokenizer is not to be found, or the file cannot be used.
    """
    path = resolve(path)

    def found() -> tuple[str, str]:
        place = kept_tokenizer(path, read_state(path).model_dump())
        if place is None:
            raise CheckpointError(
                f"the tokenizer.json that the run was trained with is neither in "
                f"{path.parent.parent} nor in {path}: put the corpus's own there"
            )
        content = content_of(place, limit_bytes=TOKENIZER_BYTES_AT_MOST)
        return content.decode(), weights_of(path)

    content, weights = on_first_rank(found, UserError)
    tokenizer = read_tokenizer(content.encode(), name=f"the tokenizer of {path}")
    assert isinstance(engine.module, SemiCausal)
    config = engine.module.config
    scorer = Scorer(
        reader(engine, apart=True),
        engine.mesh,
        weights=weights,
        answers=_opened(answers) if engine.mesh.world.is_main else None,
        model=config,
        batch=batch,
    )
    asking = Asking(tokenizer, config)
    return Opened(scorer=scorer, asking=asking, tokenizer=tokenizer)


def weights_of(path: Place) -> str:
    """Names the weights of a checkpoint by their checksums, wherever it lies."""
    content = content_of(path / INDEX_NAME, limit_bytes=INDEX_BYTES_AT_MOST)
    return sha256(content).hexdigest()[:32]


def _opened(path: Path | None) -> Answers:
    try:
        return Answers(path)
    except OSError as error:
        raise UserError(
            f"{path} cannot be used ({error.strerror or error}): name another directory with "
            "--scores"
        ) from None
