"""The model: decoder, encoders, connectors and the loss. It knows no process group.

Letters used in shapes and in the suffixes of local names:

    B  sequences in a microbatch      S  decoder slots in a sequence
    H  decoder width                  E  encoder width
    A  attention heads                D  width of one head
    F  feed-forward width             V  vocabulary
    R  packed encoder rows            N  spans in a microbatch
    L  rows of the longest span       M  span vectors (rows without start tokens)
    C  scored slots                   P  pixels of a patch's side
    Q  queries of an item             K  rows of one kind: queries, or rows of pictures
"""
