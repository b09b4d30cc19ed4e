"""What an exported folder holds of code: it runs where this repository cannot be imported.

Names of parameters are those of our checkpoints, so that an adapter of a run loads onto its export.
"""
