"""Input formats, one per file: ``matches(root) -> bool`` and ``load(root, options) -> Scene``; see ``scene.py``."""
