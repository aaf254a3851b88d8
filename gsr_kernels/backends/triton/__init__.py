"""The operators as Triton kernels: on NVIDIA GPUs, and in Triton's interpreter on a CPU (``TRITON_INTERPRET=1``)."""
