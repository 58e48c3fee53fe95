"""The benchmarks of ``--device cuda``, one per file: ``run(device)`` yields rows, times by CUDA events."""
