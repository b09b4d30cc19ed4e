"""Real animations with names, and clips of two of them in an order that no single frame tells.

`animations.py` reads them, `composing.py` writes videos, `questions.py` makes records, `build.py`
says what is built.
"""
