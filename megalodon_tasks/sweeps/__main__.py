"""The hydra application that runs the points of a grid; ``cli.sweep`` calls it.  See ``job.py``."""

from megalodon_tasks.sweeps.job import app

if __name__ == "__main__":
    app()
