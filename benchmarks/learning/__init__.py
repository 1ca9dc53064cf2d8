"""Compare Megalodon, Mega and a Transformer at equal data, updates and size.

tasks.py     the tasks, the models and the ablations, as data
runner.py    train them all through ``megalodon sweep``
reading.py   read the sweeps: which rate was chosen, what the runs reached
speed.py     measure the time of an update of each model, in turn
lengths.py   evaluate at lengths that were not trained on
tables.py    the results as CSV and Markdown
pictures.py  the results as pictures
"""
