"""What a run imports only once it is needed, for processes that import ahead."""

import importlib

from model import torchvision_free
from parallel.megatron import core
from parallel.zero import deepspeed_access

_MEGATRON = ("parallel_state", "pipeline_parallel.schedules", "transformer.transformer_config")
_DEEPSPEED = (
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "deepspeed.runtime.zero.stage_1_and_2",
    "deepspeed.runtime.zero.stage3",
)


def import_rest() -> None:
    """Import DeepSpeed and megatron-core, which takes seconds."""
    torchvision_free.install()
    deepspeed_access.imported()
    for name in _MEGATRON:
        core(name)
    for name in (*_DEEPSPEED, "train.loop"):
        importlib.import_module(name)
