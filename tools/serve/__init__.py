"""A model behind HTTP, by the protocol that most clients of language models speak.

The door is `python -m tools.serve`. `protocol` says what may be asked and how it is answered,
`chat` the same of conversations, `items` what pictures and sounds may come with either; `spelling`
writes tokens, `worker` computes for all who ask at a time, and `application` is what stands between
them.
"""
