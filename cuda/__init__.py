"""The kernels: ``.cu`` sources on lanes, the native modules, the loader for GPUs, one Python module per op family."""

from pkgutil import extend_path

# In a checkout whose root is on the path, this folder also answers to the bare name of NVIDIA's package: share it.
__path__ = extend_path(__path__, __name__)
