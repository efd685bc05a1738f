"""The network prepared for a CUDA GPU: weights in bf16, attention by fused kernels, forward passes as CUDA graphs.

No GPU has run this yet: it was built and tested on an imitation of one (``tests/pretend_gpu.py``).
"""
