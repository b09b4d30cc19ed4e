"""To Hugging Face's transformers and back.

`folder` writes a checkpoint as a folder that transformers loads by itself, with the files of
`shipped` in it, and reads one back; `names` is the one table of names of both ways; `card` is the
page that tells what lies in the folder.
"""
