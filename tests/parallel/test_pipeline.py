"""How many microbatches a schedule can take."""

import pytest

from parallel.pipeline import microbatch_fault


@pytest.mark.parametrize("num_microbatches", [1, 2, 3, 7])
def test_every_number_without_interleaving(num_microbatches: int) -> None:
    assert microbatch_fault(num_microbatches, pipeline=4, chunks=1) is None


def test_interleaving_goes_round_in_groups() -> None:
    possible = [n for n in range(1, 13) if microbatch_fault(n, pipeline=4, chunks=2) is None]
    assert possible == [4, 8, 12]
    assert microbatch_fault(6, pipeline=4, chunks=2) == (
        "layout.chunks: the interleaved schedule needs a multiple of layout.pipeline (4) "
        "microbatches a step and there are 6: change batch.micro_sequences or batch.sequences, or "
        "use chunks=1"
    )
