import subprocess
import sys

SCRIPT = """
import os
from model.torchvision_free import install
named = install()
assert install() == named, "the second call repeats the answer"
import torch
for use in ("import streaming", "from transformers import LlamaForCausalLM"):
    if (child := os.fork()) == 0:  # each where the other was not imported
        exec(use)
        assert hasattr(torch.ops.torchvision, "nms")
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, use
"""


def test_imports_that_need_torchvision_work() -> None:
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stderr
