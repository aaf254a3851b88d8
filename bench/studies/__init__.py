"""The study behind the choice of methods: sequential tuning of a pretrained encoder on classification tasks.

`python -m bench.studies run --data DIR` fills `results/` with one JSON a run, `report` turns them into the tables and
figures of docs/evidence.md.
"""
