"""How a machine comes into a run: the invite, the door that it opens, who was let in, and what the operator may ask."""
