"""The studies behind docs/evidence.md.

`encoder_*` tune a pretrained sentence encoder on classification tasks, `language_*` a small causal language model on
tasks of writing; `queue`, `stats` and `tables` are for both. `python -m bench.studies STUDY run` writes one JSON file a
run, `python -m bench docs evidence` turns them into the tables and figures of the page.
"""
