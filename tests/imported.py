"""What ranks import before they do anything; see `tests.warm`."""

import contextlib
import importlib
import os
from pathlib import Path

from train.imported import import_rest
from train.watch import report

import_rest()
_WITH_THE_FIRST_STEP = (
    *("deepspeed.comm.mori", "deepspeed.module_inject.auto_ep_layer", "deepspeed.utils.pin_memory"),
    *("deepspeed.module_inject.auto_ep_presets.registry", "torch.profiler._cupti_monitor"),
    *("rich._emoji_codes", "encodings.utf_8_sig"),
)
"""What a run imports later on, for a third of a second of each."""
for _name in ("train.__main__", *_WITH_THE_FIRST_STEP):
    with contextlib.suppress(ImportError):  # of another release
        importlib.import_module(_name)
# Jinja's work on the report's pages takes a sixth of a short run.
for _page in ("page", "report"):
    report.template_of(Path(report.__file__).with_name(f"{_page}.html.jinja"))
# Of this process; each rank has its own.
os.environ.pop("LOCAL_SIZE", None)
assert len(os.listdir("/proc/self/task")) == 1, "only a process of one thread can be forked"
