"""Spans: which slots of a sequence an encoder fills, and what it reads for them.

kind (configured) -> reader: chooses the spans of a sample -> flat spans of a batch -> scored slots
                             packs what the encoder reads  -> packed spans of one modality
"""
