"""Episodes of MiniGrid, played by its own bot and told in words, whose questions need their time.

`world.py` has rooms, `playing.py` what happens in them, `questions.py` makes records, `build.py`
says what is built.
"""
