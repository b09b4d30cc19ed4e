"""Public data sets as users have them on disk, made records of corpora and of tasks.

`convert.py` has the table of them and writes what they become; `given.py` reads the files that they
consist of, `forms.py` says what records look like; `captions.py`, `questions.py` and `speech.py`
know the schema of each. Nothing is downloaded, and no medium copied.
"""
