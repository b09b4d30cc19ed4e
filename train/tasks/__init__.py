"""Tasks: a task is a way of making documents, and of asking for their ends.

    Task (one YAML) ── TaskReader ──> Example: context, and choices or an answer
                                        │ Protocol: which records and templates, demonstrations
                                        │ Fitting: what a model has room for
                                        v
                 document (train/data/document.py): context unscored, answer scored

`task.py` is what a task file says, `records.py` reads records, `filling.py` fills templates with
them, `reader.py` does both.
"""
