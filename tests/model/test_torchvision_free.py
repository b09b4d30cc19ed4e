import subprocess
import sys

import pytest

SCRIPT = """
from model.torchvision_free import install
named = install()
assert install() == named, "the second call repeats the answer"
{use}
import torch
assert hasattr(torch.ops.torchvision, "nms")
"""


@pytest.mark.parametrize("use", ["import streaming", "from transformers import LlamaForCausalLM"])
def test_imports_that_need_torchvision_work(use: str) -> None:
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(use=use)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
