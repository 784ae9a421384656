"""Our own CUDA kernels: sources, compilation, launch wrappers, references, the TensorRT plugin.

Nothing here imports torch, tensorrt or the CUDA packages before it is called.
"""
