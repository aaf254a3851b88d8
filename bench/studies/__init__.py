"""The studies behind docs/evidence.md.

A study (`encoder`, `language`) is a model, a sequence of tasks, and configurations with the rates to try. `frontier`
makes the runs, many in one process, by the pieces of `python -m gsr_kernels continual`. `curves` and `answer` say what
each configuration keeps where it learns as much as plain fine-tuning, `tables` what the studies' first form came to.
`python -m bench docs evidence` turns all of them into the pages.
"""
