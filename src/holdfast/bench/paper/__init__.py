"""Tables 1 and 2 of the paper as commands: models, their pre-training, the grid of runs, the table with intervals."""
