"""Speech with what is said in it: by two engines, and by people.

`programs.py` has Debian's espeak-ng and flite speak, unpacked and not installed; some of
espeak-ng's voices and all of flite's are held out. `people.py` reads prompts that people recorded,
all held out. `texts.py` says what is spoken, `utterances.py` has it spoken and makes records of it,
`build.py` says what is built.
"""
