"""What runs recorded, and what is made of it.

record.py       read and write ``metrics.jsonl`` and ``results.jsonl``
environment.py  describe device, versions and commit, for the record
results.py      compare a result with published numbers
figures.py      learning curves of one run and of several
report.py       the page about any set of runs and sweeps
sweep.py        what a sweep consists of, and the state of its runs
sweep_job.py    run the points of a sweep with hydra's multirun
sweep_table.py  collect the results of a sweep into tables and pictures
"""
