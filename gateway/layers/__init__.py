"""A layer as one thing: its name, how it is coded and cut, what a pass proved of it, and where the index of that is kept."""
