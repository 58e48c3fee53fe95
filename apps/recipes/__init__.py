"""One published method per file: a frozen ``Config`` with its defaults, that builds what ``fit`` needs."""
