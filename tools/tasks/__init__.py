"""Real tasks, made of packages that install; and what a model is tuned on, and has gained.

`recipes.py` names what can be built, of `sources/`; `build.py` writes records in three splits with
their licences,
`verify.py` looks whether splits tell of each other, `documents.py` makes a corpus of tasks, and
`outcome.py` holds scores before and after tuning against each other. What a task asks of its
records stands in `configs/task/`.
"""
