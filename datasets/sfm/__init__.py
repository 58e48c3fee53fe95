"""Structure from motion: poses of photographs that have none, by COLMAP's library on the CPU.

``survey`` (which photographs) -> ``features`` (SIFT) -> ``pairs`` and ``matching`` -> ``checks`` (will it work?) ->
``mapping`` -> a COLMAP model in the data's own folder (``reconstruct``), which ``datasets/photos.py`` opens.
Schönberger and Frahm 2016, "Structure-from-Motion Revisited"; Pan et al. 2024, "Global Structure-from-Motion
Revisited".
"""
