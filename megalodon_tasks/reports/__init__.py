"""One page about any set of runs: final metrics beside the paper's, curves, differences, environment.

runs.py       find runs and read what they left
compare.py    what differs between their configurations; tables
curves.py     pictures of losses and metrics
page.py       the HTML page and the Markdown file, from the templates beside it
"""
