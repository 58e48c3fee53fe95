"""One verb of the command line per file: a typed ``run`` function and a ``main`` that parses its arguments."""
