"""Builds training corpora from documentation that installs from package registries."""
