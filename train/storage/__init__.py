"""Bytes, in a directory or in object storage: found, fetched, checked, cached, written."""
