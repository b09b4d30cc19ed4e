"""What ranks import before they do anything; see `tests.warm`."""

import importlib
import os

from train.imported import import_rest

import_rest()
importlib.import_module("train.__main__")
# Of this process; each rank has its own.
os.environ.pop("LOCAL_SIZE", None)
assert len(os.listdir("/proc/self/task")) == 1, "only a process of one thread can be forked"
