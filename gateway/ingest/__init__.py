"""One pass over a layer as it arrives: digests, checkpoints, span table, table of contents; constant memory."""
