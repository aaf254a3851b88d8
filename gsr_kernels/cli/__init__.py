"""The commands of ``python -m gsr_kernels``, one module each."""
