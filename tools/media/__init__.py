"""Real pictures, clips and speech with what they are, made of packages that install.

`names.py` reads what emoji are called, `drawings.py` the drawings of four vendors, two of which are
held out, `clipart.py` other pictures with titles; `scenes.py` composes scenes of drawings.
`questions.py` makes records of them: documents for `tools.corpus build`, and tasks whose files
lie in `configs/task/pictures`. `build.py` says what is built, `folder.py` writes it so that a build
that was stopped goes on. `clips/` and `episodes/` have what moves, `speech/` what is heard;
`public/` reads data sets that others have published.
"""
