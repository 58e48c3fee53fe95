"""The kernels. One op family per module; each op is a ``torch.library`` custom op with a fake kernel and a backward."""
