"""Which samples of a step give a loss that is not finite."""

from collections.abc import Sequence
from typing import Final

from model.batch import Batch
from parallel.agreement import gathered
from parallel.pipeline import forward
from parallel.zero.engine import ZeroEngine
from train.data.feed import Feed
from train.prepare import agreed

SHOWN: Final = 5
"""Samples that are named."""


def broken_samples(engine: ZeroEngine, feed: Feed, *, step: int, batches: Sequence[Batch]) -> str:
    """In words, what gives a loss that is not finite; every rank must call it.

    Each sequence is computed alone, for what is not finite spreads over a microbatch.

    Args:
        engine: in the state of the step.
        feed: that has read it.
        step: that is not finite.
        batches: this rank's microbatches of it.

    Raises:
        UserError: the samples cannot be read again.
    """
    mesh = engine.mesh
    S = batches[0].tokens.shape[1]
    if mesh.tensor_group is None or S % mesh.tensor_size == 0:
        batches = agreed(lambda: feed.alone(step))
    batches = [batch.to(mesh.world.device) for batch in batches]
    with engine.evaluating():
        losses = forward(engine, batches)
    first_slots: dict[int, int] = {}
    begins = 0
    for batch, loss in zip(batches, losses, strict=False):
        scored = batch.scored[: batch.num_scored]
        bad = scored[~loss.terms[: batch.num_scored].isfinite()]
        for at in reversed(bad.tolist()):  # so that the first of a sequence stays
            first_slots[begins + at // S] = at % S
        begins += len(batch.tokens)
    speaks = mesh.speaks_for_sample

    def name() -> list[str]:
        shown = sorted(first_slots.items())[:SHOWN] if speaks else []
        return [feed.name_document(step, place=place, slot=slot) for place, slot in shown]

    names = [each for named in gathered(agreed(name)) for each in named]
    num_bad = sum(gathered(len(first_slots) if speaks else 0))
    if num_bad == feed.plan.entries:
        return "all of its samples are so, and the model is to blame"
    if not num_bad:
        return "none of its samples is so alone"
    more = f" and {num_bad - len(names[:SHOWN])} more" if num_bad > len(names[:SHOWN]) else ""
    return f"it is from {', '.join(names[:SHOWN])}{more} (data.unscored_ids leaves documents out)"
