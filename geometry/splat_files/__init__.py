"""Files of Gaussians, one format per module; the folder's listing is the registry (see ``geometry/splat_io.py``).

A module has ``SUFFIXES`` (endings, lower case), ``DEGREE`` (highest band it holds), ``UP`` (the axis that its
definition calls up, or None: coordinates as the scene has them), ``REORDERED`` (whether Gaussians are stored in Morton
order), ``LOSS`` (one line: what it rounds), ``read(path, max_memory) -> Gaussians`` and ``write(file, gaussians)``,
which may take options. Modules whose names begin with an underscore are what the formats share.
"""
