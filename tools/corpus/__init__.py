"""Corpora of documents: built from files, stores and documentation, verified, shown and priced."""
