"""Trust: what recovery answers to a rejected claim; each remedy is one small class."""
