"""Sweeps: one recipe trained and evaluated over a grid of settings, and the table and pictures of it.

request.py    what is asked for: recipe, data, the values of each field; kept in SAVE/sweep.json
catalogue.py  the recipes that there are, and whether their configuration takes a setting
launch.py     hand the runs to one of hydra's launchers
job.py        one run, in a process of the launcher
alive.py      how a job notices that its sweep is gone
status.py     what became of each run; progress of the whole
table.py      collect results into CSV and Markdown
pictures.py   metric, speed and memory against the values
"""
