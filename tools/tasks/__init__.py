"""Real tasks, made of packages that install: records in three splits, licences kept.

`recipes.py` names them, `build.py` writes them; what a task asks of its records stands in
`configs/task/`.
"""
