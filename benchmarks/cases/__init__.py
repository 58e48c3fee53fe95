"""One benchmark per file: ``run(device)`` yields rows."""
