"""A page to try a model with: pictures, sounds and questions, in a browser.

The door is `python -m tools.try_it`, which `make try` calls: it starts `tools.serve` and, in an
environment of its own, `page`, which asks the server as any client does.
"""
