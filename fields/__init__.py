"""Representations: encodings, networks, and one field per file."""
