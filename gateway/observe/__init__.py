"""Seeing what the gateway does: numbers of all workers, their last quarter of an hour, maps, nodes, events."""
