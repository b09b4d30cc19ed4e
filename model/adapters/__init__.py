"""What is trained of a model, by patterns over names, and adapters beside its linear layers.

`tuning` is the door: which parameters train, which layers get adapters, and putting them on.
`peft_format` names tensors as peft's files do; `several` computes with one adapter for each row.
"""
