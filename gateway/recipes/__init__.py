"""What a device is, as values: its specification, its recipe, its states, and which faults may pass. PURE."""
