"""EleutherAI's lm-eval on our checkpoints, in an environment of its own.

`make .venv/harness/installed` makes it.

`model.py` is the model that `--model semicausal` names, `tasks.py` writes our tasks in its form.
"""
