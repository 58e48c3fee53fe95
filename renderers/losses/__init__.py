"""One loss per file: a pure function, and a frozen dataclass with its weight that is called with one ``Step``."""
