"""Kernels: devices that train tiny networks, all to the same bits (see `contract`)."""
