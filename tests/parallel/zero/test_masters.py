"""Masters that move to files, and disks that refuse them."""

import errno
from pathlib import Path

import pytest
import torch

from parallel.zero import masters, pages


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/disk/file"), "No space left on device"),
        (OSError("mapping refused"), "mapping refused"),
    ],
)
def test_the_reason_alone_is_told(
    monkeypatch: pytest.MonkeyPatch, error: OSError, reason: str
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(pages, "move_to_files", fail)
    optimizer = torch.optim.AdamW([torch.zeros(1)])
    with pytest.raises(OSError, match=rf"^{reason}$"):
        masters._move_to_files(optimizer, [], Path("/disk"))
