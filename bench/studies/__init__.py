"""The studies behind docs/evidence.md.

A study is a table of methods, tasks and rates (`encoder`, `language`). One queue takes all its runs, each by
`python -m gsr_kernels continual`, and keeps a line of each; `python -m bench docs evidence` turns them into the page.
"""
