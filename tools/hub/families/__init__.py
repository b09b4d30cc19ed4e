"""Classes of transformers whose weights become a decoder or a text encoder of ours.

`known` takes a checkpoint of any of them. Each class says what its configuration means here, and
where each of our tensors comes from, in the words of `table`. What a class can say that we do not
compute is refused with its reason, never passed over.
"""
