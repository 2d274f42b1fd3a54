"""Train language models in a pipeline of machines that may fail, spy or lie, with the same weights as if they had not."""

__version__ = "0.1.0"
