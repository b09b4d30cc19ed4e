"""Builds corpora of documents from anyone's files, checks them, shows them and counts them."""
