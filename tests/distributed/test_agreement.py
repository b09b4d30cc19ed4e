"""What several ranks say of one fault."""

import pytest
import torch.distributed as dist

from parallel.agreement import raise_first
from tools.ranks import RankPool


def _said(words: list[str | None]) -> str:
    word = words[dist.get_rank()]
    error = None if word is None else ValueError(word)
    with pytest.raises(ValueError, match=r".") as caught:
        raise_first(error, ValueError)
    return str(caught.value)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["steps: none", "steps: none"], "steps: none"),
        (["no room", None], "no room (rank 0 of 2)"),
        ([None, "no room"], "no room (rank 1 of 2)"),
        (["no room on a", "no room on b"], "no room on a (rank 0 of 2)"),
    ],
    ids=["alike", "the first", "the last", "each its own"],
)
def test_a_fault_is_of_a_rank_unless_all_say_the_same(
    rank_pools: dict[int, RankPool], words: list[str | None], said: str
) -> None:
    assert rank_pools[2].run(_said, words) == [said, said]
