"""Trust: what recovery answers to a rejected claim; each remedy is one small class, and a table of names for the command line."""
