"""The catalog: devices, layer indexes and who refers to them, leases, and a feed of what changed. SQLite or PostgreSQL."""
