"""What ranks import before they do anything; see `tests.warm`."""

import importlib
import os

from model import torchvision_free
from parallel.megatron import core
from parallel.zero import deepspeed_access

torchvision_free.install()
deepspeed_access.imported()
for name in ("parallel_state", "pipeline_parallel.schedules", "transformer.transformer_config"):
    core(name)
for name in (
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "deepspeed.runtime.zero.stage_1_and_2",
    "deepspeed.runtime.zero.stage3",
    "train.loop",
    "train.__main__",
):
    importlib.import_module(name)
# Of this process; each rank has its own.
os.environ.pop("LOCAL_SIZE", None)
assert len(os.listdir("/proc/self/task")) == 1, "only a process of one thread can be forked"
