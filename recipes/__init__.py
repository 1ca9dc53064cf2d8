"""One folder per benchmark family: task, preparation, configuration, run script."""
