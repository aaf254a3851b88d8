"""Runner of ``gsr-kernels continual``: tasks learned one after another, and what each method forgets of them."""
