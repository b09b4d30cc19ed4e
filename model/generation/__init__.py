"""Continuing prompts: many at once, each as if it were alone.

The door is `decoding`; what a token is picked by lies in `picking` and `choices`, and `scoring`
gives the probabilities of tokens that are given. All of it computes through a `Read`, so that it
knows no layout: the model itself is one, and `parallel.reading` makes one of an engine.
"""
