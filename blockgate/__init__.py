"""What the gateway and the node client decide by, in one vocabulary: names, digests, ranges, retries, errors, readers.

Nothing here needs more than the standard library and httpx. Neither program is imported from here; both import it.
"""
