"""A modality that the packages do not know, added as any other would be.

`encoder` is what would be its file in `model/encoders/`, `spans` that in `train/data/spans/`,
`patches.yaml` its configuration, and `kinds` the line in each union.
"""
