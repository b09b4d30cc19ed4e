"""Tasks: a task is a way of making documents, and of asking for their ends.

    Task (one YAML) ── records ──> Example: context, and choices or an answer
                                     │ protocol: which templates, demonstrations, caps
                                     v
              document (train/data/document.py): context unscored, answer scored

`task.py` is what a task file says, `records.py` reads what its templates are filled with,
`example.py` fills them.
"""
