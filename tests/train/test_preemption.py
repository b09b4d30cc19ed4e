"""Who asks a run to stop is heard, whatever else the process loads."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]

COMPILES_FIRST = """
import os, signal, sys
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from train.preemption import Preemption

@triton.jit
def doubled(numbers):
    tl.store(numbers, tl.load(numbers) * 2)

preemption = Preemption()
triton.compile(ASTSource(doubled, {"numbers": "*fp32"}), target=GPUTarget("cuda", 90, 32))
assert not preemption.requested, "asked before each step"
os.kill(os.getpid(), getattr(signal, sys.argv[1]))
assert preemption.requested
"""


@pytest.mark.parametrize("name", ["SIGUSR1", "SIGTERM", "SIGINT"])
def test_a_compiler_in_the_process_takes_no_signal_away(tmp_path: Path, name: str) -> None:
    """LLVM takes them when it first compiles, and SIGUSR1 is lost then."""
    (tmp_path / "compiles.py").write_text(COMPILES_FIRST)  # triton reads its functions' source
    variables = {"PYTHONPATH": str(REPOSITORY), "TRITON_CACHE_DIR": str(tmp_path)}
    ended = subprocess.run(
        [sys.executable, "compiles.py", name],
        cwd=tmp_path,
        env={**os.environ, **variables, "TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
