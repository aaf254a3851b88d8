"""The study's second part: a causal language model, pretrained on a machine's own text, learns five tasks of writing.

    python -m bench.studies.language prepare --work DIR [--size large]
    python -m bench.studies.language gate --work DIR
    python -m bench.studies.language run --work DIR
    python -m bench.studies.language report

`prepare` trains a tokenizer and a model on manual pages in every language that is installed and on the Python library,
and writes the tasks. `run` tunes by `python -m gsr_kernels continual`: rates for every method on rows of their own,
then fresh seeds at the rate with the best AP there. `report` fills the tables of docs/evidence.md. `--results` holds
the runs of one model.
"""
